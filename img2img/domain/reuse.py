"""Reuse of results: a request that asks for it gets the images of an earlier job with the same parameters."""

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from img2img.domain.spec import JobSpec, dump_spec

if TYPE_CHECKING:
    from img2img.domain.job import ImageInfo


@dataclass(frozen=True)
class ReusedResult:
    """The images of an earlier job, copied for a new one.

    Attributes:
        job_id: Id of the new job.
        source: Id of the earlier one.
        digest: `result_digest` of both.
        images: The images.
    """

    job_id: str
    source: str
    digest: str
    images: tuple["ImageInfo", ...]


def result_digest(spec: JobSpec, fingerprint: str, *, is_moderated: bool) -> str | None:
    """Return a digest that is equal for jobs that make the same images.

    Args:
        fingerprint: Of the model, from its card: weights, settings and libraries. Empty: of an earlier version, which
            does not report it; then None is returned.
        is_moderated: Whether the images are moderated, so that none from before is delivered unchecked.
    """
    if not fingerprint:
        return None
    return sha256(f"{fingerprint} {is_moderated} {dump_spec(spec)}".encode()).hexdigest()
