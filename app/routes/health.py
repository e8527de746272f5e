"""Is the process alive, and could it do work?"""

from fastapi import APIRouter, Response
from obstore.exceptions import BaseError as StoreError
from redis.exceptions import RedisError

from app.contract.models import ModelRegistry
from app.contract.outbox import Outbox
from app.contract.store import Store
from app.deps import ModelsDep, RedisDep, SettingsDep, StoreDep
from app.views import Alive, Check, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="get_health")
async def healthz() -> Alive:
    """The process is alive."""
    return Alive()


@router.get("/readyz", operation_id="get_readiness", responses={503: {"model": Readiness, "description": "Not ready."}})
def readyz(response: Response, settings: SettingsDep, redis: RedisDep, models: ModelsDep, store: StoreDep) -> Readiness:
    """Ready when Redis, the store and at least one worker are there."""
    answers, workers = _redis_and_workers(models)
    stored = _store(store)
    ready = answers.ok and stored.ok and workers.ok
    response.status_code = 200 if ready else 503
    webhooks = _webhooks(Outbox(redis)) if settings.webhook_secrets else None
    return Readiness(ready=ready, redis=answers, store=stored, workers=workers, webhooks=webhooks)


def _redis_and_workers(models: ModelRegistry) -> tuple[Check, Check]:
    try:
        live = models.live()
    except RedisError as error:
        return Check(ok=False, detail=type(error).__name__), Check(ok=False, detail="unknown without Redis")
    names = {worker for workers in live.values() for worker in workers}
    return Check(ok=True, detail="answers"), Check(ok=bool(names), detail=f"{len(names)} live")


def _webhooks(outbox: Outbox) -> Check:
    try:
        attended, waiting = outbox.is_attended(), outbox.waiting()
    except RedisError:
        return Check(ok=False, detail="unknown without Redis")
    return Check(ok=attended, detail=f"{'a' if attended else 'no'} courier is there; {waiting} to tell")


def _store(store: Store) -> Check:
    try:
        store.check()
    except (StoreError, OSError) as error:
        return Check(ok=False, detail=type(error).__name__)
    return Check(ok=True, detail="answers")
