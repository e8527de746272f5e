"""Health checks: liveness and readiness."""

from fastapi import APIRouter, Response

from ..dependencies import ReadinessDep
from ..schemas.responses import Liveness, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="get_health")
async def get_health() -> Liveness:
    """Check that the API server process responds."""
    return Liveness()


@router.get("/readyz", operation_id="get_readiness", responses={503: {"model": Readiness, "description": "Not ready."}})
async def get_readiness(response: Response, checks: ReadinessDep) -> Readiness:
    """Check that Redis, the blob store and at least one worker are available. The result is at most a second old."""
    readiness = await checks.read()
    response.status_code = 200 if readiness.ready else 503
    return readiness
