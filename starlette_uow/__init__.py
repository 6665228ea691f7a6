"""Where the database transaction of a web request begins and ends.

Integrations are imported by their own path: `starlette_uow.admin` for starlette-admin.
"""

from starlette_uow.engine import create_engine
from starlette_uow.errors import (
    BlockContextError,
    CommitOutcomeUnknownError,
    ConfigurationError,
    EndTimeoutError,
    LeftOpenError,
    MiddlewareTwiceError,
    NotAsyncError,
    NoUnitError,
    SandboxError,
    SavepointOpenError,
    SessionClassError,
    SessionDeadlockError,
    TransactionStartedError,
    UnitDoomedError,
    UnitEndedError,
    UnitOfWorkError,
    UnitOpenError,
    WebSocketUnitError,
    WrongLoopError,
    WrongThreadError,
)
from starlette_uow.middleware import UnitOfWorkMiddleware
from starlette_uow.policy import Doom, Outcome
from starlette_uow.repositories import repository
from starlette_uow.uow import UnitOfWork, current_session, current_uow

__version__ = "0.1.0"

__all__ = [
    "BlockContextError",
    "CommitOutcomeUnknownError",
    "ConfigurationError",
    "Doom",
    "EndTimeoutError",
    "LeftOpenError",
    "MiddlewareTwiceError",
    "NoUnitError",
    "NotAsyncError",
    "Outcome",
    "SandboxError",
    "SavepointOpenError",
    "SessionClassError",
    "SessionDeadlockError",
    "TransactionStartedError",
    "UnitDoomedError",
    "UnitEndedError",
    "UnitOfWork",
    "UnitOfWorkError",
    "UnitOfWorkMiddleware",
    "UnitOpenError",
    "WebSocketUnitError",
    "WrongLoopError",
    "WrongThreadError",
    "create_engine",
    "current_session",
    "current_uow",
    "repository",
]
