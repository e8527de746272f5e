"""Health checks: liveness and readiness."""

import asyncio

from fastapi import APIRouter, Response

from ..backends.readiness import combined
from ..dependencies import CellsDep
from ..schemas.responses import Liveness, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="get_health")
async def get_health() -> Liveness:
    """Check that the API server process responds."""
    return Liveness()


@router.get("/readyz", operation_id="get_readiness", responses={503: {"model": Readiness, "description": "Not ready."}})
async def get_readiness(response: Response, cells: CellsDep) -> Readiness:
    """Check that Redis, the blob store and at least one worker are available. The result is at most a second old.

    With cells, one of which they are available in is enough, and `cells` has the state of each.
    """
    found = await asyncio.gather(*(one.readiness.read() for one in cells.all))
    readiness = combined({one.cell: state for one, state in zip(cells.all, found, strict=True)})
    response.status_code = 200 if readiness.ready else 503
    return readiness
