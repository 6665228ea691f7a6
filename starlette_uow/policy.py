"""Pure decisions: what ended how, and what that makes of the transaction."""

from __future__ import annotations

import enum
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

CommitRule = Callable[[int, MutableMapping[str, Any]], bool]
"""`commit_when`: status and ASGI scope in, whether to commit out."""


class Outcome(enum.Enum):
    """What became of a transaction. `UNKNOWN`: the connection was lost during COMMIT."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return str(self.value)


class Decision(enum.Enum):
    """What to do with a transaction. `REFUSE`: roll back, and tell who wanted the commit."""

    COMMIT = "commit"
    ROLL_BACK = "roll back"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Doom:
    """Why a transaction can only roll back.

    Attributes:
        reason: a clause that completes "Nothing was committed: ...".
        wanted: the app asked for it with `doom()`, so its answer may pass.
        cause: the exception behind it, if there was one.
    """

    reason: str
    wanted: bool = False
    cause: BaseException | None = None


def wants_commit(status: int, scope: MutableMapping[str, Any], rule: CommitRule | None) -> bool:
    """Whether an answer with this status asks for a commit."""
    return status < 400 if rule is None else bool(rule(status, scope))


def decide(*, commit: bool, doom: Doom | None) -> Decision:
    """What to do with a transaction whose commit is wanted or not, doomed or not."""
    if not commit:
        return Decision.ROLL_BACK
    if doom is None:
        return Decision.COMMIT
    return Decision.ROLL_BACK if doom.wanted else Decision.REFUSE
