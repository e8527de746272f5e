"""Uploaded images, which several jobs can refer to."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from img2img.erasure import Eraser

from ..dependencies import QueueDep, StoreDep, StoreThreadsDep
from ..http.query_parameters import refuse_unknown_query
from ..openapi import operations as openapi
from ..schemas.request_fields import HEXADECIMAL_SHA256
from ..schemas.responses import UploadedImage
from ..submission.submit import REPLAYED
from ..submission.uploads import Uploader
from .body_parser import ImageRequestDep

router = APIRouter(tags=["images"], dependencies=[Depends(refuse_unknown_query)])

ImageHash = Annotated[
    str, HEXADECIMAL_SHA256, Path(alias="sha256", description="The `sha256` that `POST /images` returned.")
]


@router.post(
    "/images",
    status_code=201,
    operation_id="upload_image",
    openapi_extra={"requestBody": openapi.IMAGE_BODY},
    responses=openapi.UPLOADED | openapi.problems(400, 413, 415, 422, 429, 503, 507),
)
async def upload_image(
    request: ImageRequestDep, uploader: Annotated[Uploader, Depends(Uploader)], response: Response
) -> UploadedImage:
    """Store an image for later requests of the same API key: its `sha256` can be an `image` of `POST /img2img`.

    It is kept for a while after it was last uploaded or used, or until it is deleted. Jobs that use it have their own
    copies, which are deleted with the jobs. A repeated upload has the same response.
    """
    upload = await uploader.upload(request.image)
    if upload.is_replay:
        response.headers.update(REPLAYED)
    return UploadedImage(sha256=upload.sha256, width=upload.size[0], height=upload.size[1])


@router.delete(
    "/images/{sha256}", status_code=204, operation_id="delete_image", responses=openapi.problems(404, 422, 503)
)
async def delete_image(image: ImageHash, queue: QueueDep, store: StoreDep, store_threads: StoreThreadsDep) -> None:
    """Delete an uploaded image. Jobs that use it, also queued ones, have their own copies and are not affected."""
    await store_threads.run(Eraser(queue, store).delete_upload, image)
