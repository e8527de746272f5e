"""Asks the moderation endpoint about results before they are stored."""

import asyncio
from collections.abc import Sequence

from img2img.errors import JobError
from img2img.moderation import Moderator, NoVerdict, Verdict, request_body

# An outage of a minute should not cost rendered images.
ATTEMPTS = 6


class ResultUnchecked(JobError):
    """The images could not be checked, because moderation does not respond; submit the job again later."""

    code = "moderation_unavailable"


class ResultModeration:
    """Checks the images of jobs, on threads that may wait."""

    def __init__(self, moderator: Moderator) -> None:
        self._moderator = moderator

    def verdicts(self, pngs: Sequence[bytes]) -> list[Verdict]:
        """Return the verdict on each image. Raises ResultUnchecked if there is none."""
        try:
            return asyncio.run(self._verdicts(pngs))
        except NoVerdict as error:
            raise ResultUnchecked from error

    async def _verdicts(self, pngs: Sequence[bytes]) -> list[Verdict]:
        asked = [self._moderator.verdict(request_body(png), "result", attempts=ATTEMPTS) for png in pngs]
        return await asyncio.gather(*asked)
