"""Jobs as predictions of Replicate's API."""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal, Self

from pydantic import BaseModel

from img2img.domain.job import JobRecord, JobStatus
from img2img.domain.model_card import ModelCard

STATUSES: dict[JobStatus, Literal["starting", "processing", "succeeded", "failed", "canceled"]] = {
    JobStatus.QUEUED: "starting",
    JobStatus.RUNNING: "processing",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "canceled",
}
# Owner of models whose names have none.
OWNER = "img2img"
# Below the address of the service.
PATH = "/replicate/v1"
BAR = 10


def qualified_name(model: str) -> str:
    """Return the name of a model as `owner/name`."""
    return model if "/" in model else f"{OWNER}/{model}"


def version_of(model: str) -> str:
    """Return the id of the only version of a model. It depends on the name alone."""
    return sha256(model.encode()).hexdigest()


class Prediction(BaseModel):
    """A job."""

    id: str
    model: str
    version: str
    status: Literal["starting", "processing", "succeeded", "failed", "canceled"]
    input: dict[str, Any]
    output: list[str] | None
    logs: str
    error: str | None
    metrics: dict[str, float]
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    urls: dict[str, str]

    @classmethod
    def from_record(cls, record: JobRecord, base_url: str, output: Sequence[str] | None = None) -> Self:
        """Build the prediction from a job record.

        Args:
            base_url: Address of the service, without a slash at the end.
            output: URLs of the images. Default: where the service has them.
        """
        here = f"{base_url}{PATH}/predictions/{record.id}"
        if output is None:
            output = [f"{base_url}/jobs/{record.id}/images/{image.index}" for image in record.images]
        metrics = {}
        if record.started_at and record.finished_at:
            metrics["predict_time"] = record.finished_at - record.started_at
        if record.finished_at:
            metrics["total_time"] = record.finished_at - record.created_at
        return cls(
            id=record.id,
            model=qualified_name(record.spec.model),
            version=version_of(record.spec.model),
            status=STATUSES[record.status],
            input=record.spec.model_dump(mode="json", exclude_none=True, exclude={"model"}),
            output=list(output) or None,
            logs=_progress_bar(record),
            error=record.error.message if record.error else None,
            metrics=metrics,
            created_at=datetime.fromtimestamp(record.created_at, UTC),
            started_at=_moment(record.started_at),
            completed_at=_moment(record.finished_at),
            urls={"get": here, "cancel": f"{here}/cancel"},
        )


def _moment(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _progress_bar(record: JobRecord) -> str:
    """Return the progress as clients read it from logs: as a line of the library tqdm."""
    if not record.steps:
        return ""
    step = record.steps if record.status is JobStatus.SUCCEEDED else min(record.step, record.steps)
    done = BAR * step // record.steps
    return f"{100 * step // record.steps}%|{'#' * done}{' ' * (BAR - done)}| {step}/{record.steps}\n"


def model_view(card: ModelCard, base_url: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a model in Replicate's format.

    Args:
        schema: JSON schema of the input of predictions.
    """
    owner, _, name = qualified_name(card.name).partition("/")
    return {
        "url": f"{base_url}{PATH}/models/{owner}/{name}",
        "owner": owner,
        "name": name,
        "description": card.description,
        "visibility": "private",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": version_view(card, schema),
    }


def version_view(card: ModelCard, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the version of a model in Replicate's format. Its input is that of `POST /img2img`."""
    output = {"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"}
    schemas = {"Input": schema, "Output": output}
    return {
        "id": version_of(card.name),
        "created_at": datetime.fromtimestamp(0, UTC).isoformat(),
        "cog_version": "img2img",
        "openapi_schema": {"openapi": "3.1.0", "components": {"schemas": schemas}},
    }
