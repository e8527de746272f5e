"""Health checks: liveness and readiness."""

from fastapi import APIRouter, Response
from obstore.exceptions import BaseError as StoreError
from redis.exceptions import RedisError

from img2img.blobs import BlobStore
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.webhook_outbox import WebhookOutbox
from img2img.redis.worker_starts import WorkerStarts

from ..dependencies import ModelsDep, RedisDep, SettingsDep, StoreDep
from ..schemas.responses import DependencyStatus, Liveness, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="get_health")
async def get_health() -> Liveness:
    """Check that the API server process responds."""
    return Liveness()


@router.get("/readyz", operation_id="get_readiness", responses={503: {"model": Readiness, "description": "Not ready."}})
def get_readiness(
    response: Response, settings: SettingsDep, redis: RedisDep, models: ModelsDep, store: StoreDep
) -> Readiness:
    """Check that Redis, the blob store and at least one worker are available."""
    redis_status, worker_status = _check_redis_and_workers(
        models, WorkerStarts(redis), with_errors=not settings.keys_required
    )
    store_status = _check_store(store)
    ready = redis_status.ok and store_status.ok and worker_status.ok
    response.status_code = 200 if ready else 503
    webhooks = _check_webhooks(WebhookOutbox(redis)) if settings.webhook_secrets else None
    return Readiness(ready=ready, redis=redis_status, store=store_status, workers=worker_status, webhooks=webhooks)


def _check_redis_and_workers(
    models: ModelRegistry, starts: WorkerStarts, *, with_errors: bool
) -> tuple[DependencyStatus, DependencyStatus]:
    try:
        live = models.live()
        starting = starts.all().values()
    except RedisError as error:
        unknown = DependencyStatus(ok=False, detail="unknown without Redis")
        return DependencyStatus(ok=False, detail=type(error).__name__), unknown
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


def _check_store(store: BlobStore) -> DependencyStatus:
    try:
        store.check()
    except (StoreError, OSError) as error:
        return DependencyStatus(ok=False, detail=type(error).__name__)
    return DependencyStatus(ok=True, detail="responds")
