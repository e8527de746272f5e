"""What routes ask for, as nouns. All of it is built once, in `app.main`."""

from typing import Annotated

from fastapi import Depends, Request
from redis import Redis

from img2img.blobs import BlobStore
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.notifications import JobChangeListener
from img2img.redis.previews import Previews
from img2img.telemetry.tracing import Tracer

from .http.authentication import Caller
from .http.rate_limit import RateLimiter
from .imaging.sandbox_pool import DecoderPool
from .progress.eta import EtaEstimator
from .settings import ApiSettings


async def _settings(request: Request) -> ApiSettings:
    return request.app.state.settings  # type: ignore[no-any-return]


async def _redis(request: Request) -> Redis:
    return request.app.state.redis  # type: ignore[no-any-return]


async def _caller(request: Request) -> Caller:
    return request.state.caller  # type: ignore[no-any-return]


async def _queue(request: Request, caller: Annotated[Caller, Depends(_caller)]) -> JobQueue:
    return request.app.state.queue.as_seen_by(caller.sees)  # type: ignore[no-any-return]


async def _rate(request: Request) -> RateLimiter:
    return request.app.state.rate  # type: ignore[no-any-return]


async def _store(request: Request) -> BlobStore:
    return request.app.state.store  # type: ignore[no-any-return]


async def _models(request: Request) -> ModelRegistry:
    return request.app.state.models  # type: ignore[no-any-return]


async def _feed(request: Request) -> JobChangeListener:
    return request.app.state.feed  # type: ignore[no-any-return]


async def _forecaster(request: Request) -> EtaEstimator:
    return request.app.state.forecaster  # type: ignore[no-any-return]


async def _previews(request: Request) -> Previews:
    return request.app.state.previews  # type: ignore[no-any-return]


async def _decoders(request: Request) -> DecoderPool:
    return request.app.state.decoders  # type: ignore[no-any-return]


async def _traces(request: Request) -> Tracer:
    return request.app.state.traces  # type: ignore[no-any-return]


SettingsDep = Annotated[ApiSettings, Depends(_settings)]
RedisDep = Annotated[Redis, Depends(_redis)]
CallerDep = Annotated[Caller, Depends(_caller)]
QueueDep = Annotated[JobQueue, Depends(_queue)]  # its records and inputs are those that the caller may see
RateDep = Annotated[RateLimiter, Depends(_rate)]
StoreDep = Annotated[BlobStore, Depends(_store)]
ModelsDep = Annotated[ModelRegistry, Depends(_models)]
FeedDep = Annotated[JobChangeListener, Depends(_feed)]
ForecasterDep = Annotated[EtaEstimator, Depends(_forecaster)]
PreviewsDep = Annotated[Previews, Depends(_previews)]
DecodersDep = Annotated[DecoderPool, Depends(_decoders)]
TracesDep = Annotated[Tracer, Depends(_traces)]
