"""The services that routes use, and the annotated dependencies through which routes get them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Request
from redis import Redis

from img2img.blobs import BlobStore
from img2img.domain.cells import cell_digits, digits_of
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

# Parameters of paths that are ids of jobs or batches.
PATH_IDS = ("job_id", "batch_id")


@dataclass(frozen=True)
class Services:
    """Long-lived objects of the API server. `app.main` builds them once, for each cell, as `app.state.cells`.

    Attributes:
        cell: Name of the cell; empty for a service without cells.
    """

    cell: str
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


class Cells:
    """The services of each cell. Without cells there is one.

    A request is processed in the cell that its path names by the id of a job or a batch, else in that of its API key.
    """

    def __init__(self, services: Sequence[Services]) -> None:
        self.all = services
        self._by_name = {one.cell: one for one in services}
        self._by_digits = {digits_of(one.cell): one for one in services if one.cell}

    def of_request(self, request: Request) -> Services:
        """Return the services that process a request."""
        if self._by_digits:
            for name in PATH_IDS:
                found = self._by_digits.get(cell_digits(request.path_params.get(name, "")) or "")
                if found is not None:
                    return found
        return self.of_caller(request)

    def of_caller(self, request: Request) -> Services:
        """Return the services of the cell that has the caller's API key; those of the first cell without a key."""
        caller: Caller | None = getattr(request.state, "caller", None)
        return self._by_name.get(caller.cell if caller else "", self.all[0])


def services_of(request: Request) -> Services:
    """Return the services that process a request."""
    cells: Cells = request.app.state.cells
    return cells.of_request(request)


async def _cells(request: Request) -> Cells:
    cells: Cells = request.app.state.cells
    return cells


CellsDep = Annotated[Cells, Depends(_cells)]


async def _services(request: Request) -> Services:
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]


def _service(get: Callable[[Services], object]) -> Any:
    """Return a dependency on one of the services. It is async, so FastAPI resolves it without a thread."""

    async def dependency(request: Request) -> object:
        return get(services_of(request))

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
    return services_of(request).queue.visible_to(caller.visible_owner)


async def _decoder_share(request: Request, caller: CallerDep) -> DecoderShare:
    services = services_of(request)
    return DecoderShare(services.decoders, services.rate_limiter, caller.owner)


@dataclass(frozen=True)
class VisibleJobs:
    """The jobs of one cell that the caller may see."""

    queue: JobQueue
    eta: EtaEstimator


async def _visible_jobs(cells: CellsDep, request: Request, caller: CallerDep) -> list[VisibleJobs]:
    services = cells.all if caller.visible_owner is None else [cells.of_caller(request)]
    return [VisibleJobs(one.queue.visible_to(caller.visible_owner), one.eta) for one in services]


# In the caller's cell; for a key with the scope `admin`, in all cells.
VisibleJobsDep = Annotated[list[VisibleJobs], Depends(_visible_jobs)]


@dataclass(frozen=True)
class RequestContext:
    """The parts of a request that a submit needs. One dependency, because FastAPI takes long to resolve several."""

    services: Services
    caller: Caller
    held_bytes: HeldBytes

    @property
    def decoders(self) -> DecoderShare:
        """The decoders, as the caller may use them."""
        return DecoderShare(self.services.decoders, self.services.rate_limiter, self.caller.owner)


async def _context(request: Request) -> RequestContext:
    return RequestContext(services_of(request), request.state.caller, request.state.held_bytes)


ContextDep = Annotated[RequestContext, Depends(_context)]
QueueDep = Annotated[JobQueue, Depends(_visible_queue)]
DecodersDep = Annotated[DecoderShare, Depends(_decoder_share)]
SettingsDep = Annotated[ApiSettings, _service(lambda services: services.settings)]
DefaultModelDep = Annotated[DefaultModel, _service(lambda services: services.default_model)]
RedisDep = Annotated[Redis, _service(lambda services: services.redis)]
ModelsDep = Annotated[ModelRegistry, _service(lambda services: services.models)]
FreeDiskDep = Annotated[FreeDisk, _service(lambda services: services.free_disk)]
StoreDep = Annotated[BlobStore, _service(lambda services: services.store)]
StoreThreadsDep = Annotated[StoreThreads, _service(lambda services: services.store_threads)]
EtaDep = Annotated[EtaEstimator, _service(lambda services: services.eta)]
PreviewsDep = Annotated[Previews, _service(lambda services: services.previews)]
JobReadsDep = Annotated[JobReads, _service(lambda services: services.job_reads)]
JobChangesDep = Annotated[JobChangeListener, _service(lambda services: services.job_changes)]
