"""The requests of a batch: one for each line of JSON lines, or for each combination of values over one request."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from typing import Any, Protocol

from fastapi.exceptions import RequestValidationError

from img2img.domain.job_batch import MAX_JOBS
from img2img.errors import ImageError, ParameterError, RequestError, UnsupportedMedia

from ..http.problem_details import MAX_ERRORS
from ..http.request_body import describe_unknown_fields, parse_json
from ..schemas.batches import BatchItem, BatchRequest
from ..schemas.image_references import parse_reference
from ..schemas.request_fields import ALPHA, parse_image
from ..schemas.requests import Img2ImgRequest

IMAGE_FIELDS = ("image", "mask")
# Fields with entries, and the key of the image in an entry.
NESTED_IMAGE_FIELDS = {"controls": "image", "image_prompts": "image", "regions": "mask"}
TOO_MANY = f"A batch has at most {MAX_JOBS:,} jobs"


class BatchItems(Protocol):
    """The requests of a batch. They are parsed when they are read, one at a time.

    Attributes:
        images: Images that requests name by their SHA-256, beside those that the service has.
    """

    @property
    def images(self) -> Mapping[str, bytes]: ...

    def __len__(self) -> int: ...

    def parse(self) -> Iterator[BatchItem]:
        """Yield the requests in order. Raises RequestValidationError or RequestError for one, and goes no further."""
        ...


@dataclass(frozen=True)
class Lines:
    """JSON lines."""

    lines: list[bytes]
    images: Mapping[str, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def parse(self) -> Iterator[BatchItem]:
        return (_parse(bytearray(line)) for line in self.lines)

    @classmethod
    def of(cls, body: bytes) -> "Lines":
        """Split a body. Raises ParameterError for no line, or too many."""
        lines = [line for line in body.split(b"\n") if line.strip()]
        if not lines:
            raise ParameterError("items", "The body has no line; each line is a request as JSON")
        if len(lines) > MAX_JOBS:
            raise ParameterError("items", f"{TOO_MANY}; this one has {len(lines):,}")
        return cls(lines)


@dataclass(frozen=True)
class Combinations:
    """One request with all combinations of the values of some fields."""

    request: Mapping[str, Any]
    vary: Mapping[str, list[Any]]
    images: Mapping[str, bytes]

    def __len__(self) -> int:
        return math.prod(map(len, self.vary.values()))

    def parse(self) -> Iterator[BatchItem]:
        for values in product(*self.vary.values()):
            document = {**self.request, **dict(zip(self.vary, values, strict=True))}
            yield _parse(bytearray(json.dumps(document).encode()))

    @classmethod
    def of(cls, batch: BatchRequest) -> "Combinations":
        """Read a batch. Its images are kept once. Raises ParameterError."""
        for name in batch.vary:
            if name not in Img2ImgRequest.model_fields:
                known = ", ".join(Img2ImgRequest.model_fields)
                raise ParameterError(f"vary.{name}", f"Unknown field; known are {known}")
            if name in batch.request:
                raise ParameterError(f"vary.{name}", "It is also in `request`: leave it out there")
        images: dict[str, bytes] = {}
        vary = {name: [_without_images(name, value, images) for value in values] for name, values in batch.vary.items()}
        request = {name: _without_images(name, value, images) for name, value in batch.request.items()}
        combinations = cls(request, vary, images)
        if len(combinations) > MAX_JOBS:
            raise ParameterError("vary", f"{TOO_MANY}; these values have {len(combinations):,} combinations")
        return combinations


def read_all(items: BatchItems) -> Iterator[BatchItem]:
    """Yield the requests of a batch as long as all are valid.

    Raises:
        RequestValidationError: The errors of the first invalid requests, after all of them were read.
        RequestError: A line is no JSON text.
    """
    errors: list[Any] = []
    requests, index = items.parse(), 0
    while True:
        try:
            with naming_item(index):
                request = next(requests, None)
        except RequestValidationError as error:
            errors += error.errors()
            # A generator ends with its first error.
            requests = _from(items, index + 1)
        else:
            if request is None:
                break
            if not errors:
                yield request
        index += 1
        if len(errors) >= MAX_ERRORS:
            break
    if errors:
        raise RequestValidationError(errors)


def _from(items: BatchItems, index: int) -> Iterator[BatchItem]:
    if isinstance(items, Lines):
        return Lines(items.lines[index:]).parse()
    # The others differ only in the values of one request: these errors are enough.
    return iter(())


@contextmanager
def naming_item(index: int) -> Iterator[None]:
    """Name a request of the batch in errors that are raised in the context: as `items.3.strength`."""
    prefix = f"items.{index}"
    try:
        yield
    except RequestValidationError as error:
        raise RequestValidationError(
            [{**item, "loc": ("items", index, *item["loc"])} for item in error.errors()]
        ) from None
    except ParameterError as error:
        error.field = f"{prefix}.{error.field}"
        raise
    except (ImageError, UnsupportedMedia) as error:
        error.field = f"{prefix}.{error.field}"
        error.args = (f"{error.field}: {error.message}",)
        raise
    except RequestError as error:
        error.args = (f"{prefix}: {error.message}",)
        raise


def _parse(text: bytearray) -> BatchItem:
    try:
        return parse_json(text, BatchItem, strict=True)
    except RequestValidationError as error:
        describe_unknown_fields(error, BatchItem)
        raise


def _without_images(name: str, value: Any, images: dict[str, bytes]) -> Any:
    """Return the value of a field with the SHA-256 of each image, and add the images."""
    if name in IMAGE_FIELDS:
        return _digest(value, images)
    key = NESTED_IMAGE_FIELDS.get(name)
    if key is not None and isinstance(value, list):
        return [
            {**entry, key: _digest(entry[key], images)} if isinstance(entry, dict) and key in entry else entry
            for entry in value
        ]
    return value


def _digest(value: Any, images: dict[str, bytes]) -> Any:
    if not isinstance(value, str) or value == ALPHA or parse_reference(value):
        return value
    # A value that is no image is reported with the item.
    with suppress(ValueError):
        image = parse_image(value)
        digest = sha256(image).hexdigest()
        images[digest] = image
        return digest
    return value
