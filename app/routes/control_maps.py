"""POST /control-maps: what a ControlNet would be shown of a picture.

A job like any other, on the worker that would make the map for POST /img2img: some maps need a model, and what a client
looks at should be what its job follows, byte for byte.
"""

from functools import partial
from hashlib import sha256

from anyio.to_thread import run_sync
from fastapi import APIRouter, Response

from img2img.domain.conditioning import ControlType
from img2img.domain.job import JobOptions
from img2img.domain.spec import ControlMapSpec
from img2img.errors import ParameterError

from ..dependencies import EtaDep
from ..imaging.decode import encode_png
from ..openapi import operations as openapi
from ..schemas.requests import ControlMapRequest
from ..schemas.responses import Job
from ..submission.defaults import resolve_size
from ..submission.submit import JobSubmitter, JobSubmitterDep, Plan
from .body_parser import ControlMapRequestDep

router = APIRouter(tags=["jobs"])


@router.post(
    "/control-maps",
    status_code=202,
    operation_id="submit_control_map",
    openapi_extra={"requestBody": openapi.CONTROL_MAP_BODY},
    responses=openapi.SUBMITTED | openapi.problems(400, 410, 413, 415, 422, 429, 503),
)
async def submit_control_map(
    request: ControlMapRequestDep,
    response: Response,
    admission: JobSubmitterDep,
    eta: EtaDep,
) -> Job:
    """Queues a job whose image 0 is the map. Its path can be the `image` of a control, with `preprocess` false."""
    keep_s, owner = admission.settings.result_ttl, admission.caller.owner
    traceparent = admission.traces.traceparent()
    terms = JobOptions(result_ttl_s=keep_s, deadline_s=request.deadline_s, owner=owner, traceparent=traceparent)
    admitted = await admission.admit(partial(plan, request, admission), terms)
    response.headers.update(admitted.headers)
    response.headers["Location"] = f"/jobs/{admitted.record.id}"
    return Job.from_record(admitted.record, *await run_sync(eta.estimate, [admitted.record]))


def plan(request: ControlMapRequest, admission: JobSubmitter) -> Plan:
    """The job, and its picture as the worker takes it: of the size that a job with this picture would have."""
    card = admission.card(request.model)
    known = tuple(dict.fromkeys((*card.preprocessors, ControlType.TILE)))
    if request.type not in known:
        message = f"The model {card.name} can make maps of these types: {', '.join(known)}"
        raise ParameterError("type", message, got=request.type.value)
    picture = admission.open("image", request.image)
    width, height = resolve_size(request.width, request.height, picture.size, card)
    blob = encode_png(picture.fit(width, height, request.resize))
    digest = sha256(blob).hexdigest()
    spec = ControlMapSpec(
        model=card.name, image=digest, type=request.type, width=width, height=height, resize=request.resize
    )
    return spec, {digest: blob}
