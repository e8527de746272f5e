"""Routes of Replicate's HTTP API."""

from base64 import b64encode
from datetime import UTC, datetime
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.routing import APIRoute

from img2img.domain.blob_keys import upload_key, uploaded_hash
from img2img.domain.job import JobRecord, JobStatus
from img2img.domain.model_card import ModelCard
from img2img.erasure import Eraser
from img2img.errors import NotFound, ParameterError
from img2img.imaging.file_types import MAGIC_BYTES, identify
from img2img.redis.input_images import StoredUpload
from img2img.redis.job_store import Cursor

from ...http.query_parameters import CursorQuery, refuse_unknown_query
from ...http.request_body import read_form, read_json
from ...progress.long_poll import MAX_WAIT_S, preferred_wait, wait_for_end
from ...schemas.predictions import OWNER, PATH, Prediction, model_view, version_of, version_view
from ...schemas.requests import Img2ImgRequest
from ...submission.submit import REPLAYED
from ...submission.uploads import Uploader
from ..blocking_jobs import BlockingJobs, BlockingJobsDep
from ..request_fields import client_names
from .requests import CANCEL_AFTER, PredictionRequest, seconds_of

PAGE = 100
# Redis has cursors of 64 bits.
MAX_SCAN_CURSOR = 2**64 - 1

Prefer = Annotated[str | None, Header()]
CancelAfter = Annotated[str, Header(alias=CANCEL_AFTER)]

router = APIRouter(prefix=PATH, include_in_schema=False, dependencies=[Depends(refuse_unknown_query)])


def base_url_of(request: Request) -> str:
    """Return the address of the service as the client knows it."""
    return str(request.base_url).rstrip("/")


@router.post("/predictions", status_code=201)
async def create_prediction(
    request: Request, response: Response, jobs: BlockingJobsDep, prefer: Prefer = None, cancel_after: CancelAfter = ""
) -> Prediction:
    """Submits a job for the model that `version` names."""
    body = await read_json(request, PredictionRequest, strict=False)
    if not body.version:
        raise ParameterError("version", "Field required: a model as `owner/name`, or the id of its version")
    card = await run_sync(_card_of_version, jobs, body.version)
    return await _create(body, card, request, response, jobs, prefer, cancel_after)


@router.post("/models/{owner}/{name}/predictions", status_code=201)
async def create_prediction_of_model(
    owner: str,
    name: str,
    request: Request,
    response: Response,
    jobs: BlockingJobsDep,
    prefer: Prefer = None,
    cancel_after: CancelAfter = "",
) -> Prediction:
    """Submits a job for a model."""
    body = await read_json(request, PredictionRequest, strict=False)
    if body.version:
        raise ParameterError("version", "It is given by the path; leave it out")
    card = await run_sync(_card, jobs, owner, name)
    return await _create(body, card, request, response, jobs, prefer, cancel_after)


async def _create(
    body: PredictionRequest,
    card: ModelCard,
    request: Request,
    response: Response,
    jobs: BlockingJobs,
    prefer: str | None,
    cancel_after: str,
) -> Prediction:
    """Submit a job, and wait for its end as long as the client prefers."""
    job_request, names = await run_sync(body.to_request, card, base_url_of(request), seconds_of(cancel_after))
    with client_names(names):
        submitted = await jobs.submitter.submit(job_request)
    del body, job_request
    jobs.release_body()
    response.headers.update(submitted.headers)
    wait_s = preferred_wait(prefer)
    if wait_s is None:
        wait_s = MAX_WAIT_S if "wait" in (prefer or "").lower() else 0
    record = await wait_for_end(submitted.record.id, wait_s, jobs.queue, jobs.job_changes)
    prediction = await _with_output(record, request, jobs)
    # Clients take any other status for the end of a prediction for which they have waited.
    return prediction if record.status.is_terminal else prediction.model_copy(update={"status": "starting"})


async def _with_output(record: JobRecord, request: Request, jobs: BlockingJobs) -> Prediction:
    """Return the prediction with its images as data: URLs. Clients read them without an API key, or only over https."""
    output = []
    if record.status is JobStatus.SUCCEEDED:
        images = await jobs.pngs(record)
        output = await run_sync(lambda: [f"data:image/png;base64,{b64encode(png).decode()}" for png in images])
    return Prediction.from_record(record, base_url_of(request), output)


@router.get("/predictions")
def list_predictions(request: Request, jobs: BlockingJobsDep, cursor: CursorQuery = None) -> dict[str, Any]:
    """Lists the jobs of the caller as predictions, newest first."""
    records, last = jobs.queue.job_store.page(None, Cursor.parse(cursor) if cursor else None, PAGE)
    base_url = base_url_of(request)
    return {
        "previous": None,
        "next": f"{base_url}{PATH}/predictions?cursor={last}" if last else None,
        "results": [Prediction.from_record(record, base_url) for record in records],
    }


@router.get("/predictions/{job_id}")
async def get_prediction(job_id: str, request: Request, jobs: BlockingJobsDep) -> Prediction:
    """Returns a job as a prediction."""
    return await _with_output(await run_sync(jobs.queue.job_store.find, job_id), request, jobs)


@router.post("/predictions/{job_id}/cancel")
def cancel_prediction(job_id: str, request: Request, jobs: BlockingJobsDep) -> Prediction:
    """Cancels a job. A job that has already ended is returned unchanged."""
    jobs.queue.job_store.find(job_id)
    jobs.queue.cancel(job_id)
    return Prediction.from_record(jobs.queue.job_store.find(job_id), base_url_of(request))


@router.post("/files", status_code=201)
async def create_file(
    request: Request, response: Response, jobs: BlockingJobsDep, uploader: Annotated[Uploader, Depends(Uploader)]
) -> dict[str, Any]:
    """Stores an image, as `POST /images`. Metadata are not kept."""
    form = await read_form(request, jobs.settings.max_body_bytes)
    contents = [value for name, value in form if name == "content" and isinstance(value, bytes)]
    if len(contents) != 1:
        raise ParameterError("content", f"Exactly one file is taken, not {len(contents)}")
    upload = await uploader.upload(contents[0])
    if upload.is_replay:
        response.headers.update(REPLAYED)
    return await get_file(upload.sha256, request, jobs)


@router.get("/files")
async def list_files(
    request: Request, jobs: BlockingJobsDep, cursor: Annotated[int, Query(ge=0, le=MAX_SCAN_CURSOR)] = 0
) -> dict[str, Any]:
    """Lists the uploaded images of the caller."""
    images = jobs.queue.input_images
    uploads, following = await run_sync(images.uploads, jobs.submitter.caller.owner, cursor, PAGE)
    files = [await _described(upload, request, jobs) for upload in uploads]
    return {
        "previous": None,
        "next": f"{base_url_of(request)}{PATH}/files?cursor={following}" if following else None,
        "results": [file for file in files if file],
    }


@router.get("/files/{sha256}")
async def get_file(sha256: str, request: Request, jobs: BlockingJobsDep) -> dict[str, Any]:
    """Describes an uploaded image of the caller."""
    upload = await run_sync(jobs.queue.input_images.upload, upload_key(sha256), jobs.submitter.caller.owner)
    file = await _described(upload, request, jobs) if upload else None
    if file is None:
        raise NotFound("There is no such file.")
    return file


@router.delete("/files/{sha256}", status_code=204)
async def delete_file(sha256: str, jobs: BlockingJobsDep) -> None:
    """Deletes an uploaded image, as `DELETE /images/{sha256}`."""
    await jobs.store_threads.run(Eraser(jobs.queue, jobs.store).delete_upload, sha256)


async def _described(upload: StoredUpload, request: Request, jobs: BlockingJobs) -> dict[str, Any] | None:
    """Return an uploaded image as a file of Replicate's, None if it is being deleted."""
    sha256 = uploaded_hash(upload.blob_key)
    start = await jobs.store_threads.run(jobs.store.get_start, upload.blob_key, MAGIC_BYTES)
    if sha256 is None or start is None:
        return None
    kind = identify(start).lower()
    # An upload is kept for this time after it was last sent or used.
    created_at = max(0.0, upload.kept_until - jobs.settings.result_ttl)
    return {
        "id": sha256,
        "name": f"{sha256[:12]}.{kind}",
        "content_type": f"image/{kind}",
        "size": upload.size,
        "etag": sha256,
        "checksums": {"sha256": sha256},
        "metadata": {},
        "created_at": datetime.fromtimestamp(created_at, UTC).isoformat(),
        "expires_at": datetime.fromtimestamp(upload.kept_until, UTC).isoformat(),
        "urls": {"get": f"{base_url_of(request)}{PATH}/files/{sha256}"},
    }


@router.get("/models")
def list_models(request: Request, jobs: BlockingJobsDep) -> dict[str, Any]:
    """Lists the models that live workers serve."""
    known, base_url = jobs.models.known(), base_url_of(request)
    cards = [known[name] for name in sorted(jobs.models.live()) if name in known]
    schema = Img2ImgRequest.model_json_schema()
    return {"previous": None, "next": None, "results": [model_view(card, base_url, schema) for card in cards]}


@router.get("/models/{owner}/{name}")
def get_model(owner: str, name: str, request: Request, jobs: BlockingJobsDep) -> dict[str, Any]:
    """Returns a model."""
    return model_view(_card(jobs, owner, name), base_url_of(request), Img2ImgRequest.model_json_schema())


@router.get("/models/{owner}/{name}/versions")
def list_versions(owner: str, name: str, jobs: BlockingJobsDep) -> dict[str, Any]:
    """Lists the only version of a model."""
    version = version_view(_card(jobs, owner, name), Img2ImgRequest.model_json_schema())
    return {"previous": None, "next": None, "results": [version]}


@router.get("/models/{owner}/{name}/versions/{version}")
def get_version(owner: str, name: str, version: str, jobs: BlockingJobsDep) -> dict[str, Any]:
    """Returns the only version of a model."""
    card = _card(jobs, owner, name)
    if version != version_of(card.name):
        raise NotFound(f"There is no such version of {owner}/{name}; there is: {version_of(card.name)}.")
    return version_view(card, Img2ImgRequest.model_json_schema())


def _card(jobs: BlockingJobs, owner: str, name: str) -> ModelCard:
    """Return the card of a model. Raises NotFound."""
    card = _find(jobs, f"{owner}/{name}")
    if card is None:
        raise NotFound(f"There is no model {owner}/{name}; there are: {', '.join(jobs.models.known_names())}.")
    return card


def _find(jobs: BlockingJobs, name: str) -> ModelCard | None:
    """Return the card of a model by `owner/name`, or by a name without owner."""
    owner, _, rest = name.partition("/")
    return jobs.models.find(name) or (jobs.models.find(rest) if owner == OWNER else None)


def _card_of_version(jobs: BlockingJobs, version: str) -> ModelCard:
    """Return the card of a model by `owner/name`, by the id of its version, or by both. Raises ParameterError."""
    name, _, version_id = version.rpartition(":")
    known = jobs.models.known()
    card = next((card for card in known.values() if version_of(card.name) == version_id), None)
    if not name:
        card = card or _find(jobs, version)
    elif card and card != _find(jobs, name):
        card = None
    if card is None:
        message = f"There is no such version; the models are: {', '.join(sorted(known))}"
        raise ParameterError("version", message, got=version)
    return card


@router.api_route("/{path:path}", methods=["GET", "POST"])
def not_supported(path: str) -> None:
    """Names the endpoints that there are."""
    known = dict.fromkeys(route.path for route in router.routes[:-1] if isinstance(route, APIRoute))
    raise NotFound(f"{PATH}/{path} is not supported. Supported are: {', '.join(known)}.")
