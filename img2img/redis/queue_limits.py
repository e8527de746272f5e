"""Limits on waiting jobs and on stored input images."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from img2img.errors import QuotaExceeded, StorageFull, TooManyQueued


@dataclass(frozen=True)
class QueueLimits:
    """How many jobs may wait, and how many bytes of images may be stored for them; None means any number.

    Attributes:
        max_queued: Waiting jobs of all owners.
        max_queued_per_owner: Waiting jobs of one API key. Without authentication all clients are one owner.
        max_stored_bytes: Input images and uploads of all owners, each counted once.
        max_stored_bytes_per_owner: Input images and uploads that one owner has sent.
    """

    max_queued: int | None = None
    max_queued_per_owner: int | None = None
    max_stored_bytes: int | None = None
    max_stored_bytes_per_owner: int | None = None

    def owner_error(self) -> TooManyQueued:
        return TooManyQueued(
            f"{self.max_queued_per_owner} of your jobs are waiting, which is the limit; try again when some are done."
        )

    def quota_error(self, whose: str, used: int, frees_at: float | None, now: float) -> StorageFull:
        """Return the error of a quota that is used up.

        Args:
            whose: `owner`, or `all`.
            used: Bytes stored.
            frees_at: Time at which the first image is deleted, if known.
            now: Present time.
        """
        limit = self.max_stored_bytes_per_owner if whose == "owner" else self.max_stored_bytes
        kind, subject = (QuotaExceeded, "Your images") if whose == "owner" else (StorageFull, "All stored images")
        retry_after_s = None if frees_at is None else max(1, math.ceil(frees_at - now))
        return kind(
            f"{subject} take {used:,} of {limit:,} bytes. Delete images or jobs, try again when some have expired, or "
            "refer to an image that is stored.",
            retry_after_s=retry_after_s,
            used=used,
            limit=limit,
            frees_at=None if frees_at is None else datetime.fromtimestamp(frees_at, UTC),
        )
