"""A job's webhook: where its end is told, which ends are, and how the telling went."""

from enum import StrEnum
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl

Event = Literal["job.succeeded", "job.failed", "job.cancelled"]
EVENTS: tuple[Event, ...] = get_args(Event)


def _plain(url: HttpUrl) -> HttpUrl:
    if url.username is not None or url.password is not None:
        raise ValueError("URL should have no user name or password: the signature says who sends")
    if url.fragment is not None:
        raise ValueError("URL should have no fragment: it would not be sent")
    return url


class Webhook(BaseModel):
    """Where to tell how a job ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[HttpUrl, AfterValidator(_plain), Field(description="Gets a signed POST. https only, as a rule.")]
    events: Annotated[
        list[Event],
        Field(min_length=1, description="The ends that are told."),
        AfterValidator(lambda events: [event for event in EVENTS if event in events]),
    ] = list(EVENTS)

    @property
    def host(self) -> str:
        """The host as it stands in the URL, in lower case and punycode; an IPv6 address in brackets."""
        return self.url.host or ""

    @property
    def statuses(self) -> list[str]:
        """The job states that are told."""
        return [event.removeprefix("job.") for event in self.events]


class DeliveryStatus(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Delivery(BaseModel):
    """How the delivery of a job's event stands. Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    status: DeliveryStatus = DeliveryStatus.PENDING
    attempts: int = 0
    last_attempt_at: float | None = None
    next_attempt_at: float | None = None
    last_status: int | None = None  # of the last answer, if there was one
    last_error: str | None = None
