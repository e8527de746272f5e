"""Fields of requests that the compatible APIs have in common."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi.exceptions import RequestValidationError

from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import Task
from img2img.errors import ImageError, ParameterError, UnsupportedMedia

from ..schemas.requests import Img2ImgRequest
from ..submission.task_selection import REQUIREMENTS

# Fields that select a task other than an edit, without requirements of their own.
NOT_OF_EDITS = frozenset({"instruction", "upscale"})


def prompt_field(prompt: str, card: ModelCard, fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the prompt as the field that the model takes: an instruction if it edits images, and nothing speaks for
    another task.

    Args:
        fields: The other fields of the request, by the names of `POST /img2img`.
    """
    names = fields.keys() & Img2ImgRequest.model_fields.keys()
    is_edit = not names & NOT_OF_EDITS and all(Task.EDIT in REQUIREMENTS[name].tasks for name in names)
    return {"instruction" if prompt and is_edit and Task.EDIT in card.tasks else "prompt": prompt}


@contextmanager
def client_names(names: Mapping[str, str]) -> Iterator[None]:
    """Name the fields of errors as the client did.

    Args:
        names: The client's names by those of `POST /img2img`.
    """
    try:
        yield
    except (ParameterError, ImageError, UnsupportedMedia) as error:
        error.field = _renamed(error.field, names)
        raise
    except RequestValidationError as error:
        known = f"; known are {', '.join(dict.fromkeys(names.get(name, name) for name in Img2ImgRequest.model_fields))}"
        for item in error.errors():
            if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
                item["msg"], known = f"Unknown field{known}", ""
            if item["loc"]:
                item["loc"] = (names.get(item["loc"][0], item["loc"][0]), *item["loc"][1:])
        raise


def _renamed(field: str, names: Mapping[str, str]) -> str:
    first, dot, rest = field.partition(".")
    return f"{names.get(first, first)}{dot}{rest}"
