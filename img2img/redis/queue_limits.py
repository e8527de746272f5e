"""Limits on the number of waiting jobs."""

from dataclasses import dataclass

from img2img.errors import TooManyQueued


@dataclass(frozen=True)
class QueueLimits:
    """How many jobs may wait; None means any number.

    Attributes:
        max_queued: Waiting jobs of all owners.
        max_queued_per_owner: Waiting jobs of one API key. Without authentication all clients are one owner.
    """

    max_queued: int | None = None
    max_queued_per_owner: int | None = None

    def owner_error(self) -> TooManyQueued:
        return TooManyQueued(
            f"{self.max_queued_per_owner} of your jobs are waiting, which is the limit; try again when some are done."
        )
