"""POST /img2img: submits a job."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from ..http.query_parameters import refuse_unknown_query
from ..openapi import operations as openapi
from ..schemas.responses import DryRunResult, Job
from ..submission.submit import JobSubmitterDep
from .body_parser import RequestDep

router = APIRouter(tags=["jobs"], dependencies=[Depends(refuse_unknown_query)])

DryRunQuery = Annotated[
    bool, Query(description="Validate the request and return the job that it would make, without making it.")
]


@router.post(
    "/img2img",
    status_code=202,
    operation_id="submit_img2img",
    openapi_extra={"requestBody": openapi.SUBMIT_BODY},
    responses=openapi.SUBMITTED | openapi.DRY_RUN | openapi.problems(400, 410, 413, 415, 422, 429, 500, 503, 507),
)
async def submit_img2img(
    submitter: JobSubmitterDep,
    request: RequestDep,
    response: Response,
    dry_run: DryRunQuery = False,
) -> Job | DryRunResult:
    """Queue a job. Poll the `Location`; when the job has succeeded, fetch its images."""
    if dry_run:
        response.status_code = 200
        return await submitter.dry_run(request)
    return await submitter.submit_job(request, response)
