"""What must hold after a request, however it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from starlette.types import Scope

from tests.asgi import http_scope
from tests.steps.attempt import Attempt

PROMISES = {
    "success told, not committed": "an answer below 400, and its rows are missing, or were refused",
    "error told, rows written": "an answer of 400 or more, and the request left rows",
    "half a unit": "some of the rows that belong together, or rows that were undone",
    "connection kept": "the request is over, and the pool has not got its connection back",
    "transaction open": "the server still has a transaction open",
    "connection lost": "open at the server, and not in the pool any more",
    "warning": "from the garbage collector, of something never awaited, of the pool or of asyncio",
    "task left": "it runs on after the request",
    "context changed": "a context variable is not as it was before",
    "hang": "the request did not end",
    "undisturbed request": "the first, or the next one: not answered as it should, or too late",
}
"""Kinds of violation, and what each means."""


class Rows(NamedTuple):
    """The rows of one transaction.

    Attributes:
        names: all or none of them are in the tables.
        due: by when an answer below 400 says that they are there: at its "start", at its "end",
            or "later", which it does not tell.
        stands: committed on purpose, whatever the answer will be.
    """

    names: frozenset[str]
    due: str = "start"
    stands: bool = False


@dataclass(frozen=True)
class Endpoint:
    """A request, and what it does to the tables if nobody disturbs it.

    Attributes:
        name: for the report.
        path: what is asked for.
        units: its transactions, in their order: a later one needs the earlier ones.
        status: of its answer.
        method: of the request.
        headers: of the request.
        body: of the request.
        before: rows that are in the tables already.
        expected: log messages that somebody else is to blame for.
        websocket: not a request, but the handshake of one, with one message.
    """

    name: str
    path: str
    units: tuple[Rows, ...] = ()
    status: int = 201
    method: str = "POST"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    before: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    websocket: bool = False

    def scope(self) -> Scope:
        path, _, query = self.path.partition("?")
        headers = [(b"host", b"test"), *self.headers]
        scope = http_scope(path, self.method, headers=headers, query_string=query.encode())
        if self.websocket:
            scope.update(type="websocket", scheme="ws", subprotocols=[])
        return scope


@dataclass
class Violation:
    kind: str
    where: str
    detail: str


@dataclass
class Tally:
    """How many cases ran, and what was violated in them."""

    cases: int = 0
    steps: int = 0
    violations: list[Violation] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.cases += other.cases
        self.steps += other.steps
        self.violations += other.violations

    @property
    def kinds(self) -> Counter[str]:
        return Counter(violation.kind for violation in self.violations)

    def __str__(self) -> str:
        shown = "\n".join(f"{v.kind}: {v.where}: {v.detail}" for v in self.violations[:20])
        return f"{self.cases} cases, violations: {dict(self.kinds)}\n{shown}"


def broken(
    endpoint: Endpoint, attempt: Attempt, names: frozenset[str], *, cut_short: bool = False
) -> Iterator[tuple[str, str]]:
    """Hold what the client was told against the tables.

    Args:
        endpoint: what was requested.
        attempt: what came of it.
        names: the rows in the tables.
        cut_short: an answer may look complete although the app cut its body off.
    """
    status, complete = attempt.status, attempt.complete
    before = frozenset(endpoint.before)
    written = names - before
    told = f"told {status}{'' if complete else ', incomplete'}; rows {sorted(written)}"
    known = frozenset().union(*(unit.names for unit in endpoint.units))
    if written - known or before - names:
        failed = status is not None and status >= 400
        yield "error told, rows written" if failed else "half a unit", told
    if endpoint.status >= 400 and status is not None and status < 400:
        yield "success told, not committed", told
    missing = False
    for unit in endpoint.units:
        there = unit.names & names
        if there and (missing or there != unit.names):
            yield "half a unit", told
        missing = not there
        if status is None:
            continue
        if status >= 400 and there and not unit.stands:
            yield "error told, rows written", told
        due = unit.due == "start" or (unit.due == "end" and complete and not cut_short)
        if status < 400 and due and not there:
            yield "success told, not committed", told
