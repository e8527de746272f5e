"""Presigned uploads: clients send images to the bucket themselves, and requests refer to them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from img2img.domain.presigned_upload import ID
from img2img.domain.text_forms import Matches
from img2img.erasure import Eraser

from ..dependencies import QueueDep, StoreDep, StoreThreadsDep
from ..http.query_parameters import refuse_unknown_query
from ..openapi import operations as openapi
from ..schemas.requests import UploadRequest
from ..schemas.responses import Upload
from ..submission.presign import Presigner
from ..submission.submit import REPLAYED
from .body_parser import read_document

router = APIRouter(tags=["images"], dependencies=[Depends(refuse_unknown_query)])

UploadId = Annotated[
    str,
    Matches(f"^{ID}$", "the part after `/uploads/` of the `image` that `POST /uploads` has returned"),
    Path(description="The part of `image` after `/uploads/`."),
]


async def _read_upload(request: Request) -> UploadRequest:
    return await read_document(request, UploadRequest)


@router.post(
    "/uploads",
    status_code=201,
    operation_id="create_upload",
    openapi_extra={"requestBody": openapi.json_body("UploadRequest")},
    responses=openapi.UPLOAD_CREATED | openapi.problems(400, 410, 413, 415, 422, 429, 503, 507),
)
async def create_upload(
    request: Annotated[UploadRequest, Depends(_read_upload)],
    presigner: Annotated[Presigner, Depends(Presigner)],
    response: Response,
) -> Upload:
    """Reserve room for an image, and return a signed URL to which the client sends it, past this service.

    Where images are in an S3 bucket. Requests can refer to the image at once; a job whose image was not sent, or is
    not a valid one, fails. It is kept for a while after it was last used, or until it is deleted.
    """
    upload, is_replay = await presigner.create(request)
    if is_replay:
        response.headers.update(REPLAYED)
    return upload


@router.delete(
    "/uploads/{upload_id}", status_code=204, operation_id="delete_upload", responses=openapi.problems(404, 422, 503)
)
async def delete_upload(upload_id: UploadId, queue: QueueDep, store: StoreDep, store_threads: StoreThreadsDep) -> None:
    """Delete an image that was sent to the bucket. The file is kept as long as a job needs it."""
    await store_threads.run(Eraser(queue, store).delete_upload, upload_id)
