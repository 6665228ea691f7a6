"""What became of a COMMIT whose answer was lost: PostgreSQL remembers, and is asked.

Just before COMMIT, one statement takes down by what the transaction can be found again. If the
connection is lost, a fresh one asks `pg_xact_status()`
(https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT). The answer is
about a number, and believed only where that is still the number of this transaction:

- A promoted replica or another cluster goes on with numbers of its own. So the system identifier
  and the timeline have to be the same.
- A crash can give the number to another transaction: it is durable only when something the
  transaction wrote is. Recovery from a crash ends with a checkpoint, so there was no crash if the
  last checkpoint is the same as before. If it is that of a recovery, it says whether the number
  had been seen. If it is a later one, nobody can tell.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from starlette_uow.policy import Outcome

PATIENCE = 1.0
"""Seconds a transaction may be in progress after its connection was lost. A server that does not
notice the loss would keep it so for ever."""

ATTEMPT_TIMEOUT = 2.0
"""Seconds to connect and to ask, before another attempt."""

PAUSE = 0.1
"""Seconds between attempts."""

# Fails on a replica, which may be promoted next.
_HISTORY = """
    (select system_identifier from pg_control_system()) || '/' ||
    left(pg_walfile_name(pg_current_wal_lsn()), 8)"""

_TRACE = f"""
    select xid::text, current_setting('transaction_isolation'),
        case when xid is not null then {_HISTORY} end,
        (select checkpoint_lsn::text from pg_control_checkpoint())
    from pg_current_xact_id_if_assigned() as xid"""

# The checkpoint of a recovery (or a shutdown) begins where it is written. Before PostgreSQL 17 one
# of an idle server that logs little may do so, too.
_NOW = f"""
    select {_HISTORY}, checkpoint_lsn::text,
        checkpoint_lsn = redo_lsn and current_setting('wal_level') <> 'minimal', next_xid
    from pg_control_checkpoint()"""

_STATUS = "select pg_xact_status('{xid}')"

_TERMINATE = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where backend_xid = '{xid}'::xid8::xid"""

_log = logging.getLogger("starlette_uow")


class Trace(NamedTuple):
    """By what a transaction that is about to be committed can be found again.

    Attributes:
        xid: its number; None if it wrote nothing.
        isolation: its level.
        history: whose number that is.
        checkpoint: the last before.
    """

    xid: int | None
    isolation: str
    history: str | None
    checkpoint: str


def take_trace(connection: Connection) -> Trace:
    """Take down by what the open transaction can be found again, in one round trip."""
    xid, *rest = connection.exec_driver_sql(_TRACE).one()
    return Trace(None if xid is None else int(xid), *rest)


async def find_out(engine: Engine, trace: Trace, *, timeout: float) -> Outcome:
    """What became of the transaction; `UNKNOWN` if that cannot be told in time.

    One that wrote nothing had nothing to lose. Otherwise the server is asked, again and again
    while it is away, starts, or carries the COMMIT out. If that takes longer than `PATIENCE`, the
    backend is terminated, which settles it.

    Args:
        engine: where it ran.
        trace: what was taken before the COMMIT.
        timeout: seconds.
    """
    if trace.xid is None:
        # What a serializable transaction read is valid only if it was committed:
        # https://www.postgresql.org/docs/current/transaction-iso.html#XACT-SERIALIZABLE
        return Outcome.ROLLED_BACK if trace.isolation == "serializable" else Outcome.COMMITTED
    clock = asyncio.get_running_loop().time
    began = clock()
    while (passed := clock() - began) < timeout:
        try:
            async with asyncio.timeout(min(ATTEMPT_TIMEOUT, timeout - passed)):
                outcome = await _ask(engine, trace, terminate=passed > PATIENCE)
        except Exception as error:
            _log.debug("What became of a COMMIT could not be asked: %r", error)
        else:
            if outcome is not None:
                return outcome
        await asyncio.sleep(PAUSE)
    return Outcome.UNKNOWN


async def _ask(engine: Engine, trace: Trace, *, terminate: bool) -> Outcome | None:
    # Beside the pool, whose connections may be as dead as the one that was lost, or all in use.
    connection = await greenlet_spawn(engine.pool.recreate().connect)
    try:
        outcome = await greenlet_spawn(_look_up, connection, trace, terminate)
        await greenlet_spawn(connection.rollback)
        return outcome
    finally:
        connection.invalidate()  # outside of a greenlet, this closes it without waiting


def _look_up(connection: PoolProxiedConnection, trace: Trace, terminate: bool) -> Outcome | None:
    """The outcome; None while the transaction is in progress."""
    cursor = connection.cursor()

    def fetch(sql: str) -> Any:
        cursor.execute(sql.format(xid=trace.xid))
        return cursor.fetchone()

    history, checkpoint, of_recovery, next_xid = fetch(_NOW)
    if history != trace.history:
        return Outcome.UNKNOWN
    lived_on = checkpoint == trace.checkpoint
    if of_recovery and not lived_on and not _has_seen(next_xid, trace.xid):
        return Outcome.ROLLED_BACK
    (status,) = fetch(_STATUS)
    if status == "aborted":
        return Outcome.ROLLED_BACK  # whoever's number it is: had ours been durable, it were ours
    if status == "committed" and (lived_on or of_recovery):
        return Outcome.COMMITTED
    if status != "in progress":
        return Outcome.UNKNOWN
    if terminate and lived_on:
        fetch(_TERMINATE)
    return None


def _has_seen(next_xid: str, xid: int | None) -> bool:
    epoch, low = next_xid.split(":")
    return xid is not None and xid < (int(epoch) << 32) + int(low)
