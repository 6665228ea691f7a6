"""Tables that only the tests of the starlette-admin integration need."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Document(Base):
    """Two who edit it at once are told apart by its version."""

    __tablename__ = "documents"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), unique=True)
    file: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - as SQLAlchemy has it


class Seat(Base):
    """Its key has two columns."""

    __tablename__ = "seats"

    row: Mapped[str] = mapped_column(String(1), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    guest: Mapped[str] = mapped_column(String(50))


class Account(Base):
    """Who may log in."""

    __tablename__ = "accounts"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    failures: Mapped[int] = mapped_column(default=0)
    logins: Mapped[int] = mapped_column(default=0)


class Ticket(Base):
    """A login, until it is revoked. Its account is looked for at COMMIT."""

    __tablename__ = "tickets"

    token: Mapped[str] = mapped_column(String(50), primary_key=True)
    name: Mapped[str] = mapped_column(
        ForeignKey("accounts.name", deferrable=True, initially="DEFERRED")
    )


class Audit(Base):
    """What was done to a document."""

    __tablename__ = "audits"

    id: Mapped[int] = mapped_column(primary_key=True)
    document_id: Mapped[int]
    title: Mapped[str] = mapped_column(String(50))
