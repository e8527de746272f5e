"""Parses request bodies: multipart or JSON, with one model for both."""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, TypeVar

from anyio.to_thread import run_sync
from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from img2img.domain.job_batch import MAX_JOBS
from img2img.domain.webhook import BatchWebhook
from img2img.errors import ParameterError

from ..dependencies import SettingsDep
from ..http.request_body import (
    describe_unknown_fields,
    media_type_of,
    read_bytes,
    read_form,
    read_json,
    unsupported_type,
    validated,
)
from ..schemas.batches import BatchRequest, Hook
from ..schemas.image_references import parse_reference
from ..schemas.request_fields import ALPHA, REFERENCE_PATHS, FormValue, is_object, nest_form_fields
from ..schemas.requests import ControlMapRequest, ImageRequest, Img2ImgRequest, MaskRequest
from ..settings import ApiSettings
from ..submission.batch_items import BatchItems, Combinations, Lines

# Media types of JSON lines.
JSON_LINES = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines", "application/jsonlines")
# Enough for the values of a batch.
MAX_BATCH_VALUES = MAX_JOBS + 2000

WebhookQuery = Annotated[
    str | None, Query(description="For JSON lines: URL that is called once, when the last job has ended.")
]


class _Webhook(BaseModel):
    webhook: Hook = None


Document = TypeVar("Document", bound=BaseModel)
Body = TypeVar("Body", Img2ImgRequest, ControlMapRequest, MaskRequest, ImageRequest)


async def read_img2img(request: Request, settings: SettingsDep) -> Img2ImgRequest:
    """Read the body of `POST /img2img`."""
    return await _read(request, settings, Img2ImgRequest)


async def read_control_map(request: Request, settings: SettingsDep) -> ControlMapRequest:
    """Read the body of `POST /control-maps`."""
    return await _read(request, settings, ControlMapRequest)


async def read_mask(request: Request, settings: SettingsDep) -> MaskRequest:
    """Read the body of `POST /masks`."""
    return await _read(request, settings, MaskRequest)


async def read_image(request: Request, settings: SettingsDep) -> ImageRequest:
    """Read the body of `POST /images`."""
    return await _read(request, settings, ImageRequest)


@dataclass(frozen=True)
class BatchBody:
    """The body of `POST /batches`.

    Attributes:
        fingerprint: Hash of the body.
    """

    items: BatchItems
    webhook: BatchWebhook | None
    fingerprint: str


async def read_batch(request: Request, webhook: WebhookQuery = None) -> BatchBody:
    """Read the body of `POST /batches`: JSON lines, or one request with values to vary."""
    media_type, _ = media_type_of(request)
    if media_type in JSON_LINES:
        hook = validated(_Webhook, {"webhook": webhook}).webhook
        body = bytes(await read_bytes(request))
        digest = await run_sync(lambda: sha256(f"{hook.url if hook else ''}\n".encode() + body).hexdigest())
        return BatchBody(Lines.of(body), hook, digest)
    if media_type != "application/json":
        raise unsupported_type("The content type should be application/json, or application/jsonl for JSON lines.")
    if webhook:
        raise ParameterError("webhook", "It is a field of the JSON document; the query parameter is for JSON lines")
    document = await read_json(request, BatchRequest, strict=True, max_values=MAX_BATCH_VALUES)
    combinations = await run_sync(Combinations.of, document)
    parts = (combinations.request, combinations.vary, str(document.webhook.url) if document.webhook else "")
    digest = sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return BatchBody(combinations, document.webhook, digest)


async def read_document(request: Request, model: type[Document]) -> Document:
    """Read and validate a JSON body."""
    try:
        return await read_json(request, model, strict=True)
    except RequestValidationError as error:
        describe_unknown_fields(error, model)
        raise


async def _read(request: Request, settings: ApiSettings, model: type[Body]) -> Body:
    """Read and validate a body of either content type."""
    media_type, _ = media_type_of(request)
    try:
        if media_type == "multipart/form-data":
            fields = _check_form(await read_form(request, settings.max_body_bytes), model)
            return validated(model, nest_form_fields(fields, model.FORM_JSON))
        if media_type == "application/json":
            # Strict, because JSON has types.
            return await read_json(request, model, strict=True)
    except RequestValidationError as error:
        describe_unknown_fields(error, model)
        raise
    raise unsupported_type("The content type should be multipart/form-data or application/json.")


def _check_form(form: list[tuple[str, str | bytes]], model: type[Body]) -> dict[str, FormValue]:
    """Return the fields by name, and lists of those that may be sent several times.

    Empty text is left out: a form sends it for a field that was not filled.

    Raises:
        ParameterError: A field is sent more than once, or as text in place of a file.
    """
    fields: dict[str, FormValue] = {}
    lists: dict[str, list[str | bytes]] = {}
    for name, value in form:
        if value == "":
            continue
        if name in fields:
            raise ParameterError(name, "Field sent more than once")
        is_file_field = model.FILES.fullmatch(name) is not None
        is_reference = is_file_field and isinstance(value, str) and _is_no_file(name, value)
        is_known = is_file_field or name in model.model_fields
        if is_known and not is_reference and isinstance(value, bytes) != is_file_field:
            raise ParameterError(name, f"In a form, this field is sent as {'a file' if is_file_field else 'text'}")
        if name in model.REPEATED:
            lists.setdefault(name, []).append(value)
        else:
            fields[name] = value
    return fields | lists


def _is_no_file(name: str, text: str) -> bool:
    """Return whether a field that can be a file holds something else: a reference, or what to find as a mask."""
    is_reference = parse_reference(text) or text.startswith(REFERENCE_PATHS)
    return bool(is_reference or text == ALPHA or (name == "mask" and is_object(text)))


BatchBodyDep = Annotated[BatchBody, Depends(read_batch)]
RequestDep = Annotated[Img2ImgRequest, Depends(read_img2img)]
ControlMapRequestDep = Annotated[ControlMapRequest, Depends(read_control_map)]
MaskRequestDep = Annotated[MaskRequest, Depends(read_mask)]
ImageRequestDep = Annotated[ImageRequest, Depends(read_image)]
