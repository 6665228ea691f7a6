"""The audit trail: a subscriber to the session's flush, so that nobody can forget to write it.

It writes in the transaction that it writes about: what is rolled back leaves no entry.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from sqlalchemy import event, inspect
from sqlalchemy.orm import Session

from demo.models import (
    AuditEntry,
    Base,
    Campaign,
    Coupon,
    Customer,
    Note,
    Order,
    Payment,
    Product,
    Refund,
    User,
)

AUDITED = (Campaign, Coupon, Customer, Order, Payment, Product, Refund, User)
SECRET = {"password_hash"}
SILENT = "unaudited"
"""Key in `session.info`: this unit leaves no entries, because it fills an empty shop."""

actor: ContextVar[str] = ContextVar("actor", default="the shop")
"""Who is at work, set where somebody is recognised."""


class ShopSession(Session):
    """The session below the units of the shop."""


@event.listens_for(ShopSession, "before_flush")
def write_audit_trail(session: Session, context: object, instances: object) -> None:
    """Add an entry for each object that is about to be written."""
    if session.info.get(SILENT):
        return
    work = [("created", o) for o in session.new]
    work += [("changed", o) for o in session.dirty if session.is_modified(o)]
    work += [("deleted", o) for o in session.deleted]
    for action, instance in work:
        if isinstance(instance, AUDITED):
            changes = _changes(instance) if action == "changed" else ""
            what = f"{type(instance).__name__.lower()} {instance}"[:200]
            session.add(
                AuditEntry(who=actor.get()[:200], action=action, what=what, changes=changes)
            )


def _changes(instance: Base) -> Note:
    """Say what becomes of each column, as `price: 4.90 -> 5.20`."""
    state: Any = inspect(instance)
    changed = []
    for column in state.mapper.column_attrs:
        history = state.attrs[column.key].history
        if not history.added:
            continue
        before = "?" if not history.deleted else history.deleted[0]
        values = "..." if column.key in SECRET else f"{before} -> {history.added[0]}"
        changed.append(f"{column.key}: {values}")
    return ", ".join(changed)[:500]
