"""The services that routes use, and the annotated dependencies through which routes get them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Request
from redis import Redis

from img2img.blobs import BlobStore
from img2img.free_disk import FreeDisk
from img2img.imaging.sandbox_pool import DecoderPool
from img2img.presigned_uploads import UploadSigner
from img2img.redis.api_keys import ApiKeys
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.notifications import JobChangeListener
from img2img.redis.previews import Previews
from img2img.telemetry.tracing import Tracer

from .backends.decoder_share import DecoderShare
from .backends.default_model import DefaultModel
from .backends.moderation import RequestModeration
from .backends.readiness import ReadinessChecks
from .backends.store_threads import StoreThreads
from .http.authentication import Caller
from .http.in_flight import HeldBytes
from .http.open_requests import OpenRequests
from .http.rate_limit import RateLimiter
from .progress.eta import EtaEstimator
from .progress.job_reads import JobReads
from .settings import ApiSettings


@dataclass(frozen=True)
class Services:
    """Long-lived objects of the API server. `app.main` builds them once, as `app.state.services`."""

    settings: ApiSettings
    default_model: DefaultModel
    redis: Redis
    queue: JobQueue
    api_keys: ApiKeys
    open_requests: OpenRequests
    # None: no rate limit.
    rate_limiter: RateLimiter | None
    models: ModelRegistry
    store: BlobStore
    # Calls to the store run here.
    store_threads: StoreThreads
    free_disk: FreeDisk
    readiness: ReadinessChecks
    # Bounds the threads that parse JSON, and with them the copies of bodies.
    parsers: CapacityLimiter
    decoders: DecoderPool
    eta: EtaEstimator
    previews: Previews
    # What all clients share who follow the same job.
    job_reads: JobReads
    job_changes: JobChangeListener
    tracer: Tracer
    # None: requests are not moderated.
    moderation: RequestModeration | None
    # None: clients cannot send images to the store themselves.
    upload_signer: UploadSigner | None


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


def _service(get: Callable[[Services], object]) -> Any:
    """Return a dependency on one of the services. It is async, so FastAPI resolves it without a thread."""

    async def dependency(request: Request) -> object:
        return get(request.app.state.services)

    return Depends(dependency)


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]


async def _held_bytes(request: Request) -> HeldBytes:
    held_bytes: HeldBytes = request.state.held_bytes
    return held_bytes


HeldBytesDep = Annotated[HeldBytes, Depends(_held_bytes)]


async def _visible_queue(request: Request, caller: CallerDep) -> JobQueue:
    """Return the queue, limited to the jobs and inputs that the caller may see."""
    services: Services = request.app.state.services
    return services.queue.visible_to(caller.visible_owner)


async def _decoder_share(request: Request, caller: CallerDep) -> DecoderShare:
    services: Services = request.app.state.services
    return DecoderShare(services.decoders, services.rate_limiter, caller.owner)


QueueDep = Annotated[JobQueue, Depends(_visible_queue)]
DecodersDep = Annotated[DecoderShare, Depends(_decoder_share)]
SettingsDep = Annotated[ApiSettings, _service(lambda services: services.settings)]
DefaultModelDep = Annotated[DefaultModel, _service(lambda services: services.default_model)]
RedisDep = Annotated[Redis, _service(lambda services: services.redis)]
ModelsDep = Annotated[ModelRegistry, _service(lambda services: services.models)]
FreeDiskDep = Annotated[FreeDisk, _service(lambda services: services.free_disk)]
StoreDep = Annotated[BlobStore, _service(lambda services: services.store)]
StoreThreadsDep = Annotated[StoreThreads, _service(lambda services: services.store_threads)]
ReadinessDep = Annotated[ReadinessChecks, _service(lambda services: services.readiness)]
EtaDep = Annotated[EtaEstimator, _service(lambda services: services.eta)]
PreviewsDep = Annotated[Previews, _service(lambda services: services.previews)]
JobReadsDep = Annotated[JobReads, _service(lambda services: services.job_reads)]
JobChangesDep = Annotated[JobChangeListener, _service(lambda services: services.job_changes)]
