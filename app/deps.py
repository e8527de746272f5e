"""What routes ask for, as nouns. All of it is built once, in `app.main`."""

from typing import Annotated

from fastapi import Depends, Request
from redis import Redis

from app.contract.models import ModelRegistry
from app.contract.previews import Previews
from app.contract.queue import JobQueue
from app.contract.store import Store
from app.contract.traces import Traces
from app.decoding.pool import Decoders
from app.door import Caller
from app.feed import Feed
from app.forecast import Forecaster
from app.rate import RateLimit
from app.settings import ApiSettings


async def _settings(request: Request) -> ApiSettings:
    return request.app.state.settings  # type: ignore[no-any-return]


async def _redis(request: Request) -> Redis:
    return request.app.state.redis  # type: ignore[no-any-return]


async def _caller(request: Request) -> Caller:
    return request.state.caller  # type: ignore[no-any-return]


async def _queue(request: Request, caller: Annotated[Caller, Depends(_caller)]) -> JobQueue:
    return request.app.state.queue.as_seen_by(caller.sees)  # type: ignore[no-any-return]


async def _rate(request: Request) -> RateLimit:
    return request.app.state.rate  # type: ignore[no-any-return]


async def _store(request: Request) -> Store:
    return request.app.state.store  # type: ignore[no-any-return]


async def _models(request: Request) -> ModelRegistry:
    return request.app.state.models  # type: ignore[no-any-return]


async def _feed(request: Request) -> Feed:
    return request.app.state.feed  # type: ignore[no-any-return]


async def _forecaster(request: Request) -> Forecaster:
    return request.app.state.forecaster  # type: ignore[no-any-return]


async def _previews(request: Request) -> Previews:
    return request.app.state.previews  # type: ignore[no-any-return]


async def _decoders(request: Request) -> Decoders:
    return request.app.state.decoders  # type: ignore[no-any-return]


async def _traces(request: Request) -> Traces:
    return request.app.state.traces  # type: ignore[no-any-return]


SettingsDep = Annotated[ApiSettings, Depends(_settings)]
RedisDep = Annotated[Redis, Depends(_redis)]
CallerDep = Annotated[Caller, Depends(_caller)]
QueueDep = Annotated[JobQueue, Depends(_queue)]  # its records are those that the caller may see
RateDep = Annotated[RateLimit, Depends(_rate)]
StoreDep = Annotated[Store, Depends(_store)]
ModelsDep = Annotated[ModelRegistry, Depends(_models)]
FeedDep = Annotated[Feed, Depends(_feed)]
ForecasterDep = Annotated[Forecaster, Depends(_forecaster)]
PreviewsDep = Annotated[Previews, Depends(_previews)]
DecodersDep = Annotated[Decoders, Depends(_decoders)]
TracesDep = Annotated[Traces, Depends(_traces)]
