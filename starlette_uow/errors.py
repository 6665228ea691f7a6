"""The tree of errors. Every message states the fact, then the remedy.

UnitOfWorkError
├── ConfigurationError          a wrong argument, found at start-up
│   ├── NotAsyncError           a synchronous engine or sessionmaker
│   ├── SessionClassError       a session class that units cannot use
│   └── MiddlewareTwiceError    one unit of work, two middlewares on one app
├── NoUnitError                 nothing is open here
│   ├── UnitEndedError          it was open, and has ended
│   └── WebSocketUnitError      it ended with the handshake
├── UnitOpenError               a unit is open where none may be
├── WrongThreadError            used from a thread it cannot be used from
├── WrongLoopError              used from another event loop
├── BlockContextError           a block was left in another context
├── TransactionStartedError     too late to choose an isolation level
├── SavepointOpenError          a checkpoint inside a savepoint
├── SessionDeadlockError        two tasks wait for each other
├── UnitDoomedError             a commit was asked for and is impossible
├── EndTimeoutError             the commit took too long and was given up
├── CommitOutcomeUnknownError   the connection was lost during COMMIT
├── SandboxError                a test asked for what its sandbox cannot do
└── LeftOpenError               a test left something open
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette_uow.policy import Doom


class UnitOfWorkError(Exception):
    """The root of all errors this package raises by itself."""


class ConfigurationError(UnitOfWorkError):
    """An argument cannot be used. Raised where it is given, before any request."""


class NotAsyncError(ConfigurationError):
    """A synchronous engine or sessionmaker was given."""

    def __init__(self, given: object) -> None:
        super().__init__(
            f"A unit of work needs an async_sessionmaker or an AsyncEngine, and got the "
            f"synchronous {given!r}. Build it with create_async_engine() and "
            f"async_sessionmaker()."
        )


class SessionClassError(ConfigurationError):
    """The sessionmaker makes sessions that units cannot use."""

    def __init__(self, session_class: object, reason: str, remedy: str = "") -> None:
        super().__init__(
            f"The session class {session_class!r} cannot be used: {reason}. "
            + (
                remedy
                or "It has to accept AsyncSession's `sync_session_class` keyword, pass it on, and "
                "name a subclass of sqlalchemy.orm.Session."
            )
        )


class MiddlewareTwiceError(ConfigurationError):
    """One unit of work is served by two middlewares of one app."""

    def __init__(self, uow: object) -> None:
        super().__init__(
            f"UnitOfWorkMiddleware serves {uow!r} twice in one app, so each request would have "
            f"two transactions. Add it once; a second database needs a UnitOfWork of its own."
        )


class NoUnitError(UnitOfWorkError):
    """No unit of work is open in the current context."""

    def __init__(self, fact: str, remedy: str) -> None:
        super().__init__(f"{fact} {remedy}")

    @classmethod
    def nowhere(cls, uow: object | None, *, served: bool) -> NoUnitError:
        """For a context that never saw a unit."""
        which = "No unit of work is open here" + (f", of {uow!r}." if uow else ".")
        if served:
            return cls(
                f"{which} UnitOfWorkMiddleware is installed, so this code runs outside of it: in "
                f"a middleware or auth backend around it, at start-up, or in a task of its own.",
                "Add UnitOfWorkMiddleware last (Starlette puts the last one outermost), or open "
                "a unit with `async with uow:`.",
            )
        return cls(
            f"{which} No UnitOfWorkMiddleware is installed.",
            "Add UnitOfWorkMiddleware to the app, or open a unit with `async with uow:`.",
        )

    @classmethod
    def excluded(cls, path: str) -> NoUnitError:
        """For a request that the middleware was told not to serve."""
        return cls(
            f"No unit of work is open: the path {path!r} is excluded from UnitOfWorkMiddleware.",
            "Take it out of `exclude`, or open a unit with `async with uow:`.",
        )


class UnitEndedError(NoUnitError):
    """The unit of this context has ended, and its session refuses use."""

    def __init__(self, unit: str, ending: str) -> None:
        super().__init__(
            f"The unit of work of {unit} has ended ({ending}), and its session cannot be used "
            f"any more.",
            "Await the task before the unit ends, or open a unit of its own with "
            "`async with uow:`.",
        )


class WebSocketUnitError(NoUnitError):
    """The unit of a websocket ended with its handshake."""

    def __init__(self, unit: str) -> None:
        super().__init__(
            f"The unit of work of {unit} ended when the websocket was accepted: a socket lives "
            f"for hours, a transaction must not.",
            "Open a unit for each message with `async with uow:`.",
        )


class UnitOpenError(UnitOfWorkError):
    """`propagation="never"` met an open unit."""

    def __init__(self, function: str, unit: str) -> None:
        super().__init__(
            f"{function} must not run inside a unit of work, and the unit of {unit} is open. "
            f"Call it outside, or change its propagation."
        )


class WrongThreadError(UnitOfWorkError):
    """A unit was used from a thread that runs no event loop, or `run_sync()` from one that does."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message
            or "A unit of work was used from a worker thread, where no event loop runs: "
            "synchronous endpoints and dependencies run there. Declare the function with `async "
            "def`, or use the session in `uow.run_sync(function)`."
        )

    @classmethod
    def on_the_loop(cls) -> WrongThreadError:
        """For `run_sync()` where waiting would stop the event loop that has to do the work."""
        return cls(
            "run_sync() was called from the event loop's own thread, which it would block for "
            "ever. Write `await uow.session.run_sync(function)` there."
        )

    @classmethod
    def no_way_back(cls) -> WrongThreadError:
        """For `run_sync()` in a thread from which no way leads to the event loop."""
        return cls(
            "run_sync() was called from a thread that anyio did not start, so it cannot find the "
            "event loop. Start it with Starlette's run_in_threadpool() or "
            "anyio.to_thread.run_sync()."
        )


class WrongLoopError(UnitOfWorkError):
    """A unit was used from another event loop than the one it belongs to."""

    def __init__(self, unit: str) -> None:
        super().__init__(
            f"The unit of work of {unit} belongs to another event loop. Database connections "
            f"cannot change loops: use the unit where it was opened, or open one here with "
            f"`async with uow.new():` on an engine of this loop."
        )


class BlockContextError(UnitOfWorkError):
    """`async with uow:` was left in a context that never entered it."""

    def __init__(self, uow: object) -> None:
        super().__init__(
            f"`async with` of {uow!r} was left in another context than it was entered in (a "
            f"fixture or a wait_for() around __aenter__() does that). Use "
            f"`async with uow.new():`, which keeps its own state."
        )


class TransactionStartedError(UnitOfWorkError):
    """An isolation level was asked for after the transaction had begun."""

    def __init__(self, unit: str, isolation_level: str) -> None:
        super().__init__(
            f"The transaction of {unit} has begun, and can no longer become {isolation_level}. "
            f'Use propagation="new", or `await uow.checkpoint()` before the call.'
        )


class SavepointOpenError(UnitOfWorkError):
    """The unit was to be committed or rolled back inside a savepoint."""

    def __init__(self, unit: str) -> None:
        super().__init__(
            f"The unit of work of {unit} cannot be ended while a savepoint is open: the "
            f"savepoint could no longer be undone. Leave `async with uow.savepoint():` first."
        )


class SessionDeadlockError(UnitOfWorkError):
    """A task waited for the session while nothing ran and nothing moved.

    Attributes:
        waiter: the name of the task that waited.
        holder: the name of the task it waited for.
    """

    def __init__(self, unit: str, waiter: str, holder: str, what: str, timeout: float) -> None:
        super().__init__(
            f"Task {waiter!r} waited {timeout:g} seconds for the session of {unit}, which task "
            f"{holder!r} keeps for {what}, and nothing moved: they wait for each other. Start "
            f"the tasks that {what} waits for inside of it, or leave it first."
        )
        self.waiter = waiter
        self.holder = holder


class UnitDoomedError(UnitOfWorkError):
    """A commit was asked for, but the transaction could only roll back.

    Attributes:
        doom: why the transaction could not be committed.
    """

    def __init__(self, doom: Doom) -> None:
        super().__init__(
            f"Nothing was committed: {doom.reason}. Let the exception reach the client, put "
            f"what may fail alone into `async with uow.savepoint():`, or call `uow.doom()` "
            f"where the rollback is wanted."
        )
        self.doom = doom


class EndTimeoutError(UnitOfWorkError):
    """The unit could not be committed within `end_timeout`, and was rolled back."""

    def __init__(self, unit: str, timeout: float) -> None:
        super().__init__(
            f"The unit of work of {unit} was not committed after {timeout:g} seconds. Its "
            f"connection was terminated, which rolled it back. Look for a statement that is still "
            f"running, or raise `end_timeout`."
        )


class CommitOutcomeUnknownError(UnitOfWorkError):
    """The connection was lost while COMMIT was in flight.

    The database has either committed everything or nothing; nobody here knows which, or, with
    `resolve_unknown`, could find it out. The error that showed the loss is the `__cause__`.
    """

    def __init__(self, unit: str) -> None:
        super().__init__(
            f"The connection was lost while the unit of work of {unit} was being committed: it "
            f"is unknown whether it was. Look for its rows before you repeat it."
        )


class SandboxError(UnitOfWorkError):
    """A test asked for what its sandbox cannot do."""

    def __init__(self, fact: str, remedy: str) -> None:
        super().__init__(f"{fact} {remedy}")

    @classmethod
    def nested(cls, holder: str) -> SandboxError:
        """For a unit inside an open one, or a request inside a block of the test."""
        return cls(
            f"A second connection was asked for inside the unit of {holder}, which holds the one "
            f"connection of the sandbox, so neither could ever go on.",
            'End the outer unit first, or use `sandbox(uow, database="clone")`, where '
            "`uow.new()` has a connection of its own as in production.",
        )

    @classmethod
    def no_turn(cls, holder: str, timeout: float) -> SandboxError:
        """For a unit that waited for another one of the test."""
        return cls(
            f"Units take turns on the one connection of a sandbox, and that of {holder} kept it "
            f"for {timeout:g} seconds.",
            'End it first, or use `sandbox(uow, database="clone")`.',
        )

    @classmethod
    def other_loop(cls) -> SandboxError:
        """For an app that a test client runs in another event loop."""
        return cls(
            "A sandbox belongs to the event loop of its test, and a connection was asked for in "
            "another one. starlette.testclient.TestClient runs the app in a loop of its own, where "
            "asyncpg's connections do not work.",
            "Use httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) in an async test, or "
            "give the fixture and the test the same loop scope.",
        )

    @classmethod
    def lost(cls) -> SandboxError:
        """For a sandbox whose transaction is gone."""
        return cls(
            "The connection of the sandbox was lost (a statement was cancelled while it ran, or "
            "the database closed it), and with it all that the test had written.",
            'Use `sandbox(uow, database="clone")` for a test of that.',
        )

    @classmethod
    def twice(cls, engine: object) -> SandboxError:
        """For an engine that is in a sandbox already."""
        return cls(
            f"{engine!r} is in a sandbox already, which holds every unit on it.",
            "Open one sandbox for each engine.",
        )

    @classmethod
    def too_late(cls, units: str) -> SandboxError:
        """For units that were opened before."""
        return cls(
            f"A sandbox was opened while units of work were open: {units}.",
            "Open the sandbox first: their transactions are outside of it.",
        )

    @classmethod
    def unsupported(cls, what: str) -> SandboxError:
        """For a definition whose engines a sandbox cannot take over."""
        return cls(
            f"A sandbox cannot take over {what}.",
            "It works for the engines a sessionmaker is bound to, with asyncpg or aiosqlite.",
        )

    @classmethod
    def in_use(cls, database: str, users: list[str]) -> SandboxError:
        """For a database that cannot be copied."""
        return cls(
            f"The database {database!r} cannot be copied while somebody is connected to it: "
            f"{', '.join(users)}.",
            "Dispose your other engines, close your other clients, and give each process of "
            "pytest-xdist a database of its own.",
        )

    @classmethod
    def elsewhere(cls, engine: object) -> SandboxError:
        """For an engine that makes its connections by a function of the user's."""
        return cls(
            f"{engine!r} went on connecting to the original database instead of its copy.",
            "Let create_engine() make the connections, from the URL and `connect_args`.",
        )


class LeftOpenError(UnitOfWorkError):
    """A test left units, tasks or connections open when its sandbox ended.

    Attributes:
        left: what, for people.
    """

    def __init__(self, left: list[str]) -> None:
        super().__init__(
            f"The test left open: {'; '.join(left)}. All of it was ended and rolled back. Await "
            f"tasks, and leave blocks, before the sandbox ends; start what lives longer before it."
        )
        self.left = left


def pool_note(unit: str, holders: list[str]) -> str:
    """What to add to the timeout of a pool whose connections the same request holds itself."""
    return (
        f"The unit of {unit} waited for a connection, while {len(holders)} of the pool's are held "
        f"around it by {' and '.join(holders)}, which cannot end before it does. Call `await "
        f"uow.checkpoint()` before `uow.new()`, which gives the connection back, or enlarge the "
        f"pool: each request needs one connection for every unit that it nests."
    )


def paths_error(paths: object) -> ConfigurationError:
    """For an `exclude` that is not a collection of absolute paths."""
    return ConfigurationError(
        f"`exclude` has to be a collection of paths that start with '/', and is {paths!r}. "
        f'Write exclude=("/health", "/static").'
    )
