"""Is the process alive, and could it do work?"""

from fastapi import APIRouter, Response
from obstore.exceptions import BaseError as StoreError
from redis.exceptions import RedisError

from img2img.blobs import BlobStore
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.webhook_outbox import WebhookOutbox

from ..dependencies import ModelsDep, RedisDep, SettingsDep, StoreDep
from ..schemas.responses import DependencyStatus, Liveness, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="get_health")
async def healthz() -> Liveness:
    """The process is alive."""
    return Liveness()


@router.get("/readyz", operation_id="get_readiness", responses={503: {"model": Readiness, "description": "Not ready."}})
def readyz(response: Response, settings: SettingsDep, redis: RedisDep, models: ModelsDep, store: StoreDep) -> Readiness:
    """Ready when Redis, the store and at least one worker are there."""
    answers, workers = _redis_and_workers(models)
    stored = _store(store)
    ready = answers.ok and stored.ok and workers.ok
    response.status_code = 200 if ready else 503
    webhooks = _webhooks(WebhookOutbox(redis)) if settings.webhook_secrets else None
    return Readiness(ready=ready, redis=answers, store=stored, workers=workers, webhooks=webhooks)


def _redis_and_workers(models: ModelRegistry) -> tuple[DependencyStatus, DependencyStatus]:
    try:
        live = models.live()
    except RedisError as error:
        return DependencyStatus(ok=False, detail=type(error).__name__), DependencyStatus(
            ok=False, detail="unknown without Redis"
        )
    names = {worker for workers in live.values() for worker in workers}
    return DependencyStatus(ok=True, detail="answers"), DependencyStatus(ok=bool(names), detail=f"{len(names)} live")


def _webhooks(outbox: WebhookOutbox) -> DependencyStatus:
    try:
        attended, waiting = outbox.has_dispatcher(), outbox.pending_count()
    except RedisError:
        return DependencyStatus(ok=False, detail="unknown without Redis")
    plural = "" if waiting == 1 else "s"
    return DependencyStatus(
        ok=attended, detail=f"{'a' if attended else 'no'} dispatcher running; {waiting} webhook{plural} pending"
    )


def _store(store: BlobStore) -> DependencyStatus:
    try:
        store.check()
    except (StoreError, OSError) as error:
        return DependencyStatus(ok=False, detail=type(error).__name__)
    return DependencyStatus(ok=True, detail="answers")
