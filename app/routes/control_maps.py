"""POST /control-maps: submits a job that makes the control map of an image.

The map is made by the worker that would make it for POST /img2img: some maps need a model, and a map that a client
previews should be the one that its job follows, byte for byte.
"""

from fastapi import APIRouter, Depends, Response

from ..http.query_parameters import refuse_unknown_query
from ..openapi import operations as openapi
from ..schemas.responses import Job
from ..submission.submit import JobSubmitterDep
from .body_parser import ControlMapRequestDep

router = APIRouter(tags=["jobs"], dependencies=[Depends(refuse_unknown_query)])


@router.post(
    "/control-maps",
    status_code=202,
    operation_id="submit_control_map",
    openapi_extra={"requestBody": openapi.CONTROL_MAP_BODY},
    responses=openapi.SUBMITTED | openapi.problems(400, 410, 413, 415, 422, 429, 500, 503, 507),
)
async def submit_control_map(submitter: JobSubmitterDep, request: ControlMapRequestDep, response: Response) -> Job:
    """Queue a job whose image 0 is the map. Its path can be the `image` of a control, with `preprocess` false."""
    return await submitter.submit_job(request, response)
