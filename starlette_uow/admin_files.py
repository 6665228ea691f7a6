"""sqlalchemy_file with savepoints: files are deleted when the transaction ends, not before.

It deletes replaced files at a session's `after_commit` and new files at `after_soft_rollback`,
and forgets both. SQLAlchemy sends `after_commit` for the release of a savepoint, too, and every
view of starlette-admin works in one: what is then rolled back would refer to deleted files.
Nothing of it is imported here; a session without such files is left as it is.
"""

from __future__ import annotations

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from starlette_uow.session import UnitSession

REPLACED, NEW = "_old_files", "_new_files"
"""Attributes of a session: sets of paths that sqlalchemy_file acts on."""

KEPT = "starlette_uow.files"
"""Key of `Session.info`: the same sets, of savepoints that were released."""


@event.listens_for(UnitSession, "after_commit", insert=True)  # before sqlalchemy_file's own
def _after_commit(session: Session) -> None:
    if not session.in_nested_transaction():
        _give_back(session, REPLACED)
        return
    for name in (REPLACED, NEW):
        if paths := session.__dict__.pop(name, None):
            session.info.setdefault(KEPT, {}).setdefault(name, set()).update(paths)


@event.listens_for(UnitSession, "after_soft_rollback", insert=True)
def _after_soft_rollback(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        _give_back(session, NEW)


def _give_back(session: Session, name: str) -> None:
    if paths := session.info.pop(KEPT, {}).get(name):
        setattr(session, name, paths | getattr(session, name, set()))
