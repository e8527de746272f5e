"""Health checks: liveness and readiness."""

from fastapi import APIRouter, Response
from obstore.exceptions import BaseError as StoreError
from redis import Redis
from redis.exceptions import RedisError

from img2img.blobs import BlobStore, is_disk_full
from img2img.errors import StorageFull
from img2img.free_disk import FreeDisk
from img2img.redis import outage
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.webhook_outbox import WebhookOutbox
from img2img.redis.worker_starts import WorkerStarts

from ..dependencies import FreeDiskDep, ModelsDep, RedisDep, SettingsDep, StoreDep
from ..schemas.responses import DependencyStatus, Liveness, Readiness

# Room for the inputs of a job.
INPUT_BYTES = 1024 * 1024

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="get_health")
async def get_health() -> Liveness:
    """Check that the API server process responds."""
    return Liveness()


@router.get("/readyz", operation_id="get_readiness", responses={503: {"model": Readiness, "description": "Not ready."}})
def get_readiness(
    response: Response,
    settings: SettingsDep,
    redis: RedisDep,
    models: ModelsDep,
    store: StoreDep,
    free_disk: FreeDiskDep,
) -> Readiness:
    """Check that Redis, the blob store and at least one worker are available."""
    redis_status, worker_status = _check_redis_and_workers(
        redis, models, WorkerStarts(redis), with_errors=not settings.keys_required
    )
    store_status = _check_store(store, free_disk)
    ready = redis_status.ok and store_status.ok and worker_status.ok
    response.status_code = 200 if ready else 503
    webhooks = _check_webhooks(WebhookOutbox(redis)) if settings.webhook_secrets else None
    return Readiness(ready=ready, redis=redis_status, store=store_status, workers=worker_status, webhooks=webhooks)


def _check_redis_and_workers(
    redis: Redis, models: ModelRegistry, starts: WorkerStarts, *, with_errors: bool
) -> tuple[DependencyStatus, DependencyStatus]:
    try:
        outage.check_writable(redis)
        live = models.live()
        starting = starts.all().values()
    except RedisError as error:
        unknown = DependencyStatus(ok=False, detail="unknown without Redis")
        return DependencyStatus(ok=False, detail=outage.reason_of(error) or type(error).__name__), unknown
    names = {worker for workers in live.values() for worker in workers}
    # A client without an API key learns no paths.
    details = [f"{len(names)} live", *(start.describe(with_error=with_errors) for start in starting)]
    return DependencyStatus(ok=True, detail="responds"), DependencyStatus(ok=bool(names), detail="; ".join(details))


def _check_webhooks(outbox: WebhookOutbox) -> DependencyStatus:
    try:
        is_running, pending = outbox.has_dispatcher(), outbox.pending_count()
    except RedisError:
        return DependencyStatus(ok=False, detail="unknown without Redis")
    dispatcher = "dispatcher running" if is_running else "no dispatcher running"
    return DependencyStatus(ok=is_running, detail=f"{dispatcher}; {pending} webhook{'s' * (pending != 1)} pending")


def _check_store(store: BlobStore, free_disk: FreeDisk) -> DependencyStatus:
    try:
        store.check()
        free_disk.check(INPUT_BYTES)
    except StorageFull as error:
        return DependencyStatus(ok=False, detail=error.message)
    except (StoreError, OSError) as error:
        return DependencyStatus(ok=False, detail="the disk is full" if is_disk_full(error) else type(error).__name__)
    return DependencyStatus(ok=True, detail="responds")
