"""What is known about the transaction that a unit has open, and what became of it."""

from __future__ import annotations

from sqlalchemy.engine import Connection
from sqlalchemy.pool import PoolProxiedConnection

from starlette_uow.policy import Doom, Outcome
from starlette_uow.resolving import Trace

STATE = "starlette_uow_state"
"""Attribute of what is watched: the state of the transaction."""

Watched = Connection | PoolProxiedConnection
"""SQLAlchemy's connection, and that of the pool below it, which a dialect gets to see."""


class TransactionState:
    """What is known about the transaction that a unit has open.

    Attributes:
        connections: those it has begun on.
        error: the last database error in it, and the statement it came from.
        commit_sent: COMMIT is about to be sent, or has been.
        commit_lost: what came of it was not an answer of the database.
        committed: COMMIT has been answered.
        wrote: objects were flushed, or an INSERT, UPDATE or DELETE was sent.
        rolling_back: ROLLBACK is about to be sent, or has been.
        doom: why it can only roll back.
        wants_trace: by what it can be found again is to be taken down before COMMIT.
        trace: that, or None.
        watched: what reports on it.
    """

    # Defaults of the class: there is one with each transaction, and most set few of them.
    error: tuple[BaseException, str | None] | None = None
    commit_sent = False
    commit_lost = False
    committed = False
    wrote = False
    rolling_back = False
    doom: Doom | None = None
    wants_trace = False
    trace: Trace | None = None

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.watched: list[Watched] = []

    def watch(self, connection: Connection) -> None:
        """Let the guard of a connection's engine report on this transaction from now on."""
        self.connections.append(connection)
        for watched in (connection, connection.connection):
            self.watched.append(watched)
            vars(watched)[STATE] = self

    def unwatch(self) -> None:
        """Let nothing report on it any more: it has ended."""
        while self.watched:
            vars(self.watched.pop()).pop(STATE, None)

    @property
    def outcome(self) -> Outcome:
        """What has become of it, once it has ended or its commit has failed."""
        if self.committed:
            return Outcome.COMMITTED
        # With two databases and no two-phase commit, the first may have committed already.
        if self.commit_lost or (self.commit_sent and len(self.connections) > 1):
            return Outcome.UNKNOWN
        return Outcome.ROLLED_BACK

    @property
    def is_traceable(self) -> bool:
        """Whether it can be found again: of two databases one may have committed."""
        return len(self.connections) == 1 and self.connections[0].dialect.name == "postgresql"
