"""POST /masks: submits a job that finds the mask of a thing in an image, without generating anything.

It is the mask that POST /img2img would use, so that a client can look at it first.
"""

from fastapi import APIRouter, Depends, Response

from ..http.query_parameters import refuse_unknown_query
from ..openapi import operations as openapi
from ..schemas.responses import Job
from ..submission.submit import JobSubmitterDep
from .body_parser import MaskRequestDep

router = APIRouter(tags=["jobs"], dependencies=[Depends(refuse_unknown_query)])


@router.post(
    "/masks",
    status_code=202,
    operation_id="submit_mask",
    openapi_extra={"requestBody": openapi.MASK_BODY},
    responses=openapi.SUBMITTED | openapi.problems(400, 410, 413, 415, 422, 429, 500, 503, 507),
)
async def submit_mask(submitter: JobSubmitterDep, request: MaskRequestDep, response: Response) -> Job:
    """Queue a job whose image 0 is the mask, of the size of `image`. Its path can be the `mask` of another request."""
    return await submitter.submit_job(request, response)
