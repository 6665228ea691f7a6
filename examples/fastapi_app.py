"""A FastAPI app on starlette-uow: a list of notes with authors.

pip install ".[fastapi,sqlite]" uvicorn websockets && uvicorn examples.fastapi_app:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, WebSocket
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import ForeignKey, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.requests import Request

from starlette_uow import UnitOfWork, UnitOfWorkMiddleware, create_engine
from starlette_uow.fastapi import SessionDep, UnitOfWorkDep


class Base(DeclarativeBase):
    """The tables of the example."""


class Author(Base):
    """Who signs in, by name alone."""

    __tablename__ = "authors"
    name: Mapped[str] = mapped_column(primary_key=True)
    visits: Mapped[int] = mapped_column(default=0)


class Note(Base):
    """Its author is looked for at COMMIT only."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)
    author: Mapped[str] = mapped_column(
        ForeignKey("authors.name", deferrable=True, initially="DEFERRED")
    )


class Log(Base):
    """What happened, written after the answer."""

    __tablename__ = "log"
    id: Mapped[int] = mapped_column(primary_key=True)
    line: Mapped[str]


class NewNote(BaseModel):
    """The body of a request."""

    text: str
    author: str | None = None


engine = create_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///notes.sqlite"))
uow = UnitOfWork(async_sessionmaker(engine, expire_on_commit=False))


async def signed_in(session: SessionDep, x_author: Annotated[str, Header()]) -> Author:
    """The author who asks. The visit is counted only if the request succeeds."""
    author = await session.get(Author, x_author)
    if author is None:
        raise HTTPException(401, "Who are you?")
    author.visits += 1
    return author


AuthorDep = Annotated[Author, Depends(signed_in)]
notes = APIRouter(prefix="/notes")


@notes.post("", status_code=201)
async def create(
    note: NewNote, session: SessionDep, author: AuthorDep, tasks: BackgroundTasks
) -> dict[str, str]:
    """Committed before the 201 leaves; the background task is a transaction of its own."""
    session.add(Note(text=note.text, author=note.author or author.name))
    tasks.add_task(write_log, f"{author.name} wrote {note.text}")
    return {"text": note.text}


async def write_log(line: str) -> None:
    """A block joins the unit of the request, which outlives its answer."""
    async with uow:
        uow.session.add(Log(line=line))


@notes.get("")
async def find(session: SessionDep) -> list[str]:
    """All notes."""
    return list(await session.scalars(select(Note.text).order_by(Note.text)))


@notes.get("/count")
def count(uow: UnitOfWorkDep) -> int:
    """A synchronous endpoint runs in a thread, and the session in the event loop."""

    def count_notes(session: Session) -> int:
        return session.scalars(select(func.count(Note.id))).one()

    return uow.run_sync(count_notes)


@notes.websocket("/live")
async def live(websocket: WebSocket, author: AuthorDep, uow: UnitOfWorkDep) -> None:
    """The visit is committed when the socket is accepted; each message is a unit of its own."""
    await websocket.accept()
    async for text in websocket.iter_text():
        async with uow:
            uow.session.add(Note(text=text, author=author.name))
        await websocket.send_text(f"{text} is stored")


async def conflict(request: Request, error: Exception) -> JSONResponse:
    """Also for what the database refuses at COMMIT, after the endpoint has returned."""
    return JSONResponse({"detail": "The database refused it; nothing was written."}, 409)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Create the tables, and an author to begin with."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with uow:
        await uow.session.merge(Author(name="ada"))
    yield


app = FastAPI(lifespan=lifespan)
app.include_router(notes)
app.add_exception_handler(IntegrityError, conflict)
app.add_middleware(UnitOfWorkMiddleware, uow=uow)
