"""Webhooks: where the event of a job's end is sent, and the state of its delivery."""

from enum import StrEnum
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl

Event = Literal["job.succeeded", "job.failed", "job.cancelled"]
EVENTS: tuple[Event, ...] = get_args(Event)
InterimEvent = Literal["start", "logs"]


def _without_credentials(url: HttpUrl) -> HttpUrl:
    if url.username is not None or url.password is not None:
        raise ValueError("URL should have no user name or password: requests are authenticated by their signature")
    if url.fragment is not None:
        raise ValueError("URL should have no fragment: it would not be sent")
    return url


class BatchWebhook(BaseModel):
    """URL that receives an event when the last job of a batch has ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[
        HttpUrl,
        AfterValidator(_without_credentials),
        Field(
            description="URL that receives a signed POST request. Must be https, unless private addresses are allowed."
        ),
    ]

    @property
    def host(self) -> str:
        """The host of the URL, in lower case and punycode; an IPv6 address in brackets."""
        return self.url.host or ""


class Webhook(BatchWebhook):
    """URL that receives an event when the job ends."""

    events: Annotated[
        list[Event],
        Field(min_length=1, description="Events to send."),
        AfterValidator(lambda events: [event for event in EVENTS if event in events]),
    ] = list(EVENTS)

    @property
    def statuses(self) -> list[str]:
        """The job statuses that cause an event."""
        return [event.removeprefix("job.") for event in self.events]


class PredictionWebhook(Webhook):
    """Webhook of a job that was submitted as a prediction of Replicate's API: its body is the prediction.

    Attributes:
        events: Events of the end; there may be none.
        base_url: Address of the service in the request, without a slash at the end.
        interim: Events before the end: `start`, and `logs` when the progress has changed. Each is sent once.
    """

    events: list[Event] = list(EVENTS)
    base_url: str
    interim: tuple[InterimEvent, ...] = ()


class DeliveryStatus(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Delivery(BaseModel):
    """State of the delivery of a job's event. Times are seconds since the epoch.

    Attributes:
        last_status: HTTP status of the last response, if there was one.
        last_error: Why the last attempt failed.
    """

    model_config = ConfigDict(frozen=True)

    status: DeliveryStatus = DeliveryStatus.PENDING
    attempts: int = 0
    last_attempt_at: float | None = None
    next_attempt_at: float | None = None
    last_status: int | None = None
    last_error: str | None = None
