"""Twenty people at work in one admin, and what has to be true of the tables afterwards."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import httpx
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette_admin import action
from starlette_admin.actions import ActionSelection
from starlette_admin.contrib.sqla import ModelView
from starlette_admin.events import AdminEvent

from starlette_uow import UnitOfWork, current_session
from tests.admin_app import CSRF_COOKIE, HeaderAuth, add_items, new_admin, new_app
from tests.admin_models import Audit, Document

PEOPLE = 20
DOCUMENTS = 12
TAKEN = "the title of another"
VERSION = re.compile(r'name="version"[^>]*?value="(\d+)"|value="(\d+)"[^>]*?name="version"', re.S)


class DocumentView(ModelView):
    """Its form carries the version that it was made from."""

    fields: Any = ("id", "title", "version")
    inline_editable_fields = ("title",)

    @action(name="stamp", text="Stamp")
    async def stamp(self, request: Request, selection: ActionSelection) -> None:
        for document in await selection.rows():
            document.title = f"stamped {random.getrandbits(60)}"
            current_session().add(Audit(document_id=document.id, title=document.title))


@dataclass
class Tally:
    """How each kind of request was answered, and the edits that were answered as done."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    done: list[tuple[int, str]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)

    @property
    def unexpected(self) -> dict[tuple[str, int], int]:
        """Answers that are neither a success nor a clear refusal."""
        return {key: n for key, n in self.answers.items() if key[1] not in (200, 303, 400, 422)}


def build_app(uow: UnitOfWork) -> Starlette:
    admin = new_admin(uow, DocumentView(Document), auth_provider=HeaderAuth())

    @admin.events.on(AdminEvent.AFTER_EDIT, keys=["document"])
    async def audit(context: Any) -> None:
        current_session().add(Audit(document_id=context.obj.id, title=context.obj.title))

    return new_app(admin, uow=uow)


async def add_documents(uow: UnitOfWork) -> None:
    await add_items(uow, "root")
    async with uow:
        uow.session.add_all(Document(title=f"document {n}") for n in range(DOCUMENTS))
        await uow.session.flush()
        uow.session.add(Document(title=TAKEN))  # the last, which nobody edits


class Person:
    """One browser: it opens pages, waits for their pickers, and saves."""

    def __init__(self, client: httpx.AsyncClient, tally: Tally, seed: int) -> None:
        self.client = client
        self.tally = tally
        self.random = random.Random(seed)

    async def arrive(self) -> None:
        await self.client.get("/admin/login")
        self.client.headers["X-CSRFToken"] = self.client.cookies[CSRF_COOKIE]

    async def work(self, seconds: float) -> None:
        until = monotonic() + seconds
        while monotonic() < until:
            step: Callable[[], Awaitable[None]] = self.random.choice(
                (self.look, self.pick, self.edit, self.edit, self.edit_inline, self.stamp)
            )
            await step()

    async def request(self, what: str, method: str, path: str, **form: Any) -> httpx.Response:
        response = await self.client.request(method, f"/admin{path}", **form)
        self.tally.answers[what, response.status_code] += 1
        return response

    def new_title(self) -> str:
        """Every tenth is taken, and refused by the database."""
        if self.random.random() < 0.1:
            return TAKEN
        return f"title {self.random.getrandbits(60)}"

    async def look(self) -> None:
        await self.request("list", "GET", f"/document/list?q={self.random.randrange(10)}")

    async def pick(self) -> None:
        """The pickers of an edit page all ask at once."""
        await asyncio.gather(
            *(self.request("pick", "GET", f"/_api/item/relation-lookup?q={n}") for n in range(4))
        )

    async def edit(self) -> None:
        key, title = self.random.randint(1, DOCUMENTS), self.new_title()
        page = await self.request("form", "GET", f"/document/edit?pk={key}")
        [version] = {a or b for a, b in VERSION.findall(page.text)}
        form = {"title": title, "version": version}
        response = await self.request("edit", "POST", f"/document/edit?pk={key}", data=form)
        self.note(response.status_code == 303, key, title)

    async def edit_inline(self) -> None:
        key, title = self.random.randint(1, DOCUMENTS), self.new_title()
        path = f"/_api/document/inline-edit?pk={key}&field=title"
        response = await self.request("inline", "POST", path, data={"title": title})
        self.note(response.status_code == 200, key, title)

    async def stamp(self) -> None:
        keys = self.random.sample(range(1, DOCUMENTS + 1), 3)
        pks = "&".join(f"pks={key}" for key in sorted(keys))
        await self.request("stamp", "POST", f"/_api/document/action?{pks}&name=stamp")

    def note(self, done: bool, key: int, title: str) -> None:
        (self.tally.done if done else self.tally.refused).append((key, title))


async def let_people_work(base_url: str, seconds: float) -> Tally:
    tally = Tally()
    all_here = asyncio.Barrier(PEOPLE)

    async def work(seed: int) -> None:
        options: dict[str, Any] = {"headers": {"x-user": "root"}, "timeout": 60, "verify": False}
        async with httpx.AsyncClient(base_url=base_url, **options) as client:
            person = Person(client, tally, seed)
            await person.arrive()
            await all_here.wait()
            await person.work(seconds)

    await asyncio.gather(*(work(seed) for seed in range(PEOPLE)))
    return tally


async def check_tables(uow: UnitOfWork, tally: Tally) -> None:
    """Each edit is there with its audit row, or neither; the versions count them."""
    async with uow:
        documents = (await uow.session.scalars(select(Document))).all()
        audits = (await uow.session.scalars(select(Audit).order_by(Audit.id))).all()
    audited = Counter((audit.document_id, audit.title) for audit in audits)
    edits = Counter({key: n for key, n in audited.items() if not key[1].startswith("stamped")})
    assert edits == Counter(tally.done)
    assert not audited.keys() & (set(tally.refused) - set(tally.done))
    changes = Counter(audit.document_id for audit in audits)
    titles = {audit.document_id: set[str]() for audit in audits}
    for audit in audits:
        titles[audit.document_id].add(audit.title)
    for document in documents:
        assert document.version == 1 + changes[document.id]
        assert document.title in titles.get(document.id, {document.title})
