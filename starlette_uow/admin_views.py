"""What the views of starlette-admin do differently in a unit of work: undo what starlette-admin
swallows, and tell in the form what the database refuses.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from inspect import signature
from typing import Any, NamedTuple

from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette_admin import FileField, RequestAction
from starlette_admin.actions import ActionSelection
from starlette_admin.base import BaseAdmin
from starlette_admin.contrib import sqla
from starlette_admin.exceptions import ActionFailed, FormValidationError
from starlette_admin.flash import flash
from starlette_admin.storage import FileInfo, delete_stored_files
from starlette_admin.views import BaseModelView, DefaultIndexView
from starlette_admin.widgets import BaseWidget

from starlette_uow.uow import UnitOfWork

STALE = "Somebody else has changed this in the meantime. Open it again to see what it is now."

REFUSING = ("22", "23", "44", "P0")
"""Classes of SQLSTATE that blame the data: its values, a constraint, a view, a trigger's RAISE.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

ABOUT_KEYS = ("23503", "23505", "23P01")
"""Those whose detail tells which key: foreign, unique, excluded."""

READ_BY_SCRIPTS = (
    RequestAction.INLINE_EDIT,
    RequestAction.ACTION,
    RequestAction.ROW_ACTION,
    RequestAction.IMPORT,
)
"""What starlette-admin's scripts ask for, which show the message of an answer of 400."""


class Refusal(NamedTuple):
    """What a database, or SQLAlchemy's version counter, has against the data.

    Attributes:
        message: for the user.
        column: the first column that the database names.
    """

    message: str
    column: str | None = None


def refusal(error: BaseException | None) -> Refusal | None:
    """What is wrong with the data, if that is what the error is about."""
    if isinstance(error, StaleDataError):
        return Refusal(STALE)
    if not isinstance(error, DBAPIError) or error.orig is None:
        return None
    state = getattr(error.orig, "sqlstate", None) or ""
    if not (isinstance(error, IntegrityError) or state[:2] in REFUSING):
        return None
    cause: Any = error.orig.__cause__ or error.orig  # the driver's own, below SQLAlchemy's
    said = getattr(cause, "detail", None) if state in ABOUT_KEYS else None
    said = said or str(cause).partition("\n")[0]
    named = re.search(r"Key \((\w+)|failed: \w+\.(\w+)", said)
    column = next(filter(None, named.groups())) if named else getattr(cause, "column_name", None)
    return Refusal(f"The database refused this: {said}", column)


class UnitView(sqla.ModelView):
    """Comes before the class of a view, or of an inline form, of an admin that works in units."""

    _uow: UnitOfWork

    async def create(self, request: Request, data: dict[str, Any]) -> Any:
        async with self._refusals_in_form(request):
            return await super().create(request, data)

    async def edit(self, request: Request, pk: Any, data: dict[str, Any]) -> Any:
        async with self._refusals_in_form(request):
            return await super().edit(request, pk, data)

    async def delete(self, request: Request, pks: list[Any]) -> int | None:
        async with self._refusals_in_form(request):
            return await super().delete(request, pks)

    async def _populate_obj(
        self, request: Request, obj: Any, data: dict[str, Any], is_edit: bool = False
    ) -> Any:
        mapper = inspect(self.model)
        if is_edit and mapper.version_id_col is not None:
            key = mapper.get_property_by_column(mapper.version_id_col).key
            if data.get(key) not in (None, getattr(obj, key)):
                raise self._form_error(request, Refusal(STALE))  # the form shows an older one
        return await super()._populate_obj(request, obj, data, is_edit)

    async def handle_action(
        self, request: Request, selection: ActionSelection, name: str
    ) -> Response | None:
        async with _refusals_as_failure(request):
            response = await super().handle_action(request, selection, name)
        if name == "export" and isinstance(response, RedirectResponse):
            # It caught ActionFailed, and flashes it: what the hooks wrote is undone.
            self._uow.doom("the export failed")
        return response

    async def handle_row_action(self, request: Request, pk: Any, name: str) -> Response | None:
        async with _refusals_as_failure(request):
            return await super().handle_row_action(request, pk, name)

    @asynccontextmanager
    async def _refusals_in_form(self, request: Request) -> AsyncGenerator[None]:
        """Let a form, or the row of an import, say what the database refuses."""
        action = getattr(request.state, "action", None)
        try:
            yield
            await request.state.session.flush()  # what the hooks have added
        except SQLAlchemyError as error:
            told = refusal(error)
            if told is None or not (action == RequestAction.IMPORT or _is_form(action)):
                raise
            raise self._form_error(request, told) from error

    def _form_error(self, request: Request, told: Refusal) -> FormValidationError:
        field: str | int | None = getattr(request.state, "inline_edit_field", None)
        field = field or self._field_of(request, told.column) or 0  # not of a field
        if field == 0 and _is_form(request.state.action):
            flash(request, told.message, "error")
        return FormValidationError({field: told.message})

    def _field_of(self, request: Request, column: str | None) -> str | None:
        """The field of a column, or of the relation that is kept in it."""
        mapper = inspect(self.model)
        properties = [
            *(p.key for p in mapper.column_attrs if column in (c.name for c in p.columns)),
            *(r.key for r in mapper.relationships if column in (c.name for c in r.local_columns)),
        ]
        names = [field.name for field in self.get_fields_list(request)]
        return next((name for name in properties if name in names), None)


class UnitIndexView(DefaultIndexView):
    """Comes before the class of the index page: it shows a count that failed as a "?"."""

    async def _build_view_panel(self, request: Request, view: BaseModelView) -> BaseWidget:
        async with request.state.session.begin_nested() as savepoint:
            panel = await super()._build_view_panel(request, view)
            await savepoint.rollback()  # it only reads, and a failed query ends the transaction
        return panel


class UnitAdmin(BaseAdmin):
    """Comes before the class of an admin that works in units."""

    _uow: UnitOfWork

    async def _import_row_status(self, *args: Any, **kwargs: Any) -> Any:
        """Undo a row that failed, from its validators to its hooks, and what a preview wrote.

        starlette-admin catches all exceptions of a row, and goes on with the next.
        """
        stock = super()._import_row_status
        row = signature(stock).bind(*args, **kwargs).arguments
        async with row["request"].state.session.begin_nested() as savepoint:
            told = await stock(*args, **kwargs)
            if row["preview"] or told[0] == "error":
                await savepoint.rollback()
        return told

    async def _store_upload(self, field: FileField, upload: UploadFile) -> FileInfo:
        info = await super()._store_upload(field, upload)
        self._uow.on_rollback(lambda: delete_stored_files(info))
        return info

    async def _save_inlines(
        self,
        request: Request,
        view: BaseModelView,
        parent: Any,
        inline_data: dict[str, list[dict[str, Any]]],
    ) -> None:
        await super()._save_inlines(request, view, parent, inline_data)
        if isinstance(view, UnitView):
            try:
                await _check_deferred(request.state.session, view.model)
            except SQLAlchemyError as error:
                if (told := refusal(error)) is None:
                    raise
                _forget_flashes(request)  # of the inline forms
                raise view._form_error(request, told) from error

    async def answer_refusal(self, request: Request, error: Exception) -> Response:
        """Answer for what nobody could say in a form: a refused COMMIT, a view of the app's own."""
        told = refusal(error)
        if told is None:
            raise error
        message = f"Nothing was saved. {told.message}"
        _forget_flashes(request)  # such as "added successfully"
        if getattr(request.state, "action", None) in READ_BY_SCRIPTS:
            return JSONResponse({"msg": message, "error": message}, status_code=400)
        return await self._render_error(request, HTTPException(409, message))


async def _check_deferred(session: AsyncSession, model: Any) -> None:
    """Raise now what COMMIT would refuse, as long as the form can still say so (PostgreSQL)."""
    if session.get_bind(model).dialect.name == "postgresql":
        async with session.begin_nested() as savepoint:
            check = text("SET CONSTRAINTS ALL IMMEDIATE")
            await session.execute(check, bind_arguments={"mapper": model})
            await savepoint.rollback()  # deferred again


@asynccontextmanager
async def _refusals_as_failure(request: Request) -> AsyncGenerator[None]:
    """Let an action say what the database refuses, also of what it left to be flushed."""
    try:
        yield
        await request.state.session.flush()
    except (ActionFailed, SQLAlchemyError) as error:
        # starlette-admin makes an ActionFailed of an SQLAlchemyError, with the SQL in it.
        told = refusal(error) or refusal(error.__cause__)
        if told is None:
            raise
        raise ActionFailed(told.message) from error


def _is_form(action: RequestAction | None) -> bool:
    return action is not None and action.is_form()


def _forget_flashes(request: Request) -> None:
    request.state.admin_flash_pending = []
