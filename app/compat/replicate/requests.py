"""Requests for predictions, converted to those of `POST /img2img`."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict

from img2img.domain.model_card import ModelCard
from img2img.domain.webhook import EVENTS, InterimEvent, PredictionWebhook
from img2img.errors import ParameterError

from ...http.request_body import validated
from ...schemas.predictions import PATH
from ...schemas.requests import Img2ImgRequest
from ..request_fields import client_names, prompt_field

# Names that models at Replicate use for fields of `POST /img2img`.
NAMES = {"prompt_strength": "strength", "num_outputs": "num_images", "input_image": "image"}
GIVEN_OTHERWISE = {"model": "the path or `version`", "webhook": "`webhook` beside `input`"}
# Field of many models whose default asks for the only format.
PNG = ("output_format", "png")
# Header with the longest time that a prediction may take, such as `90s` or `1h30m`.
CANCEL_AFTER = "Cancel-After"
DURATION = re.compile(r"(?:([0-9]{1,4})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,8}(?:\.[0-9]{1,3})?)s?)?")
Event = Literal["start", "output", "logs", "completed"]


class PredictionRequest(BaseModel):
    """Body of a request for a prediction."""

    model_config = ConfigDict(extra="forbid")

    input: dict[str, Any]
    version: str | None = None
    webhook: str | None = None
    webhook_completed: str | None = None
    webhook_events_filter: Annotated[list[Event], BeforeValidator(lambda events: events or ["completed"])] = [
        "completed"
    ]
    # The prediction has no URL of a stream, as predictions of models without streams.
    stream: bool = False

    def to_request(
        self, card: ModelCard, base_url: str, cancel_after_s: float | None
    ) -> tuple[Img2ImgRequest, dict[str, str]]:
        """Return the request to submit, and the client's names of its fields.

        Args:
            base_url: Address of the service in the request, without a slash at the end.
            cancel_after_s: Seconds from now to the deadline, if there is one.

        Raises:
            ParameterError, RequestValidationError: Their fields begin with `input`, if they are of the input.
        """
        given = {name: value for name, value in self.input.items() if value not in (None, "") and (name, value) != PNG}
        for name, instead in GIVEN_OTHERWISE.items():
            if name in given:
                raise ParameterError(f"input.{name}", f"It is given by {instead}; leave it out")
        fields: dict[str, Any] = {}
        names: dict[str, str] = {}
        for name, value in given.items():
            own = NAMES.get(name, name)
            if own in fields:
                raise ParameterError(f"input.{name}", f"It is the same as `{names[own]}`; leave one of them out")
            fields[own], names[own] = _with_references(value, base_url), name
        prompt = fields.pop("prompt", "")
        if not isinstance(prompt, str):
            raise ParameterError("input.prompt", "Input should be a valid string", got=prompt)
        if cancel_after_s is not None:
            if "deadline_s" in fields:
                raise ParameterError("input.deadline_s", f"It is the same as `{CANCEL_AFTER}`; leave one of them out")
            fields["deadline_s"] = cancel_after_s
        fields |= prompt_field(prompt, card, fields)
        names["instruction"] = names.get("instruction", "prompt")
        prefixed = {own: f"input.{names.get(own, own)}" for own in {*Img2ImgRequest.model_fields, *fields}}
        prefixed["webhook"] = "webhook"
        if cancel_after_s is not None:
            prefixed["deadline_s"] = CANCEL_AFTER
        with client_names(prefixed):
            request = validated(Img2ImgRequest, {**fields, "model": card.name, "webhook": self._webhook(base_url)})
        return request, prefixed

    def _webhook(self, base_url: str) -> PredictionWebhook | None:
        url = self.webhook or self.webhook_completed
        if not url:
            return None
        wanted = self.webhook_events_filter
        # All images of a prediction become public at its end, so that this is also the event of its output.
        events = EVENTS if "completed" in wanted else EVENTS[:1] if "output" in wanted else ()
        interim = [event for event in get_args(InterimEvent) if event in wanted]
        with client_names({"url": "webhook" if self.webhook else "webhook_completed"}):
            return validated(
                PredictionWebhook, {"url": url, "base_url": base_url, "events": list(events), "interim": interim}
            )


def seconds_of(duration: str) -> float | None:
    """Return the seconds of a duration such as `90`, `90s` or `1h30m`; None for empty text. Raises ParameterError."""
    text = duration.strip().lower()
    parts = DURATION.fullmatch(text)
    if parts is None:
        raise ParameterError(CANCEL_AFTER, "Input should be a duration such as 90s, 5m or 1h30m", got=duration)
    hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    return 3600 * hours + 60 * minutes + seconds if text else None


def _with_references(value: Any, base_url: str) -> Any:
    """Return the value with references to stored images in place of their URLs in this service."""
    if isinstance(value, dict):
        return {name: _with_references(item, base_url) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_references(item, base_url) for item in value]
    if not isinstance(value, str) or not value.startswith(base_url):
        return value
    found = re.fullmatch(rf"{PATH}/files/([0-9a-f]{{64}})|(/jobs/[0-9a-f]{{32}}/images/[0-9])", value[len(base_url) :])
    return (found[1] or found[2]) if found else value
