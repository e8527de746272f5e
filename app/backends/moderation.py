"""Asks the moderation endpoint about requests before their jobs are queued."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from anyio.to_thread import run_sync

from img2img.domain.spec import Img2ImgSpec, InpaintSpec, JobSpec
from img2img.errors import Unavailable
from img2img.moderation import Moderator, NoVerdict, Subject, Verdict, request_body

from ..http.errors import FlaggedRequest, Overloaded

# A client waits for the response.
ATTEMPTS = 2
# Requests of this process that are being checked.
MAX_OPEN = 64

log = logging.getLogger(__name__)


class ModerationUnavailable(Unavailable):
    """The request could not be checked, because moderation does not respond; try again in a moment."""

    code = "moderation_unavailable"


class RequestModeration:
    """Checks the prompts and images of requests. Used by one event loop.

    Args:
        subjects: The parts that are checked.
        share: Requests of one owner that are checked at once.
    """

    def __init__(self, moderator: Moderator, subjects: frozenset[Subject], *, share: int) -> None:
        self._moderator = moderator
        self._subjects = subjects
        self._share = share
        self._open: Counter[str] = Counter()  # requests being checked, by owner

    async def check(self, spec: JobSpec, blobs: Mapping[str, bytes], owner: str) -> None:
        """Ask about the job of a request.

        Args:
            blobs: The images of the job to check, by sha256.

        Raises:
            FlaggedRequest: The endpoint has flagged it.
            ModerationUnavailable: There is no verdict.
            Overloaded: Too many requests are being checked.
        """
        contents = self._contents(spec, blobs)
        if not contents:
            return
        with self._slot(owner):
            checks = [self._verdict(subject, content) for subject, content in contents]
            outcomes = await asyncio.gather(*checks, return_exceptions=True)
        for (subject, _), outcome in zip(contents, outcomes, strict=True):
            if isinstance(outcome, Verdict) and outcome.flagged:
                log.info("refused a request that moderation flagged: %s", ", ".join(outcome.categories) or subject)
                raise FlaggedRequest(subject, outcome.categories)
        for outcome in outcomes:
            if isinstance(outcome, NoVerdict):
                raise ModerationUnavailable from outcome
            if isinstance(outcome, BaseException):
                raise outcome

    def _contents(self, spec: JobSpec, blobs: Mapping[str, bytes]) -> list[tuple[Subject, tuple[str | bytes, ...]]]:
        """Return the parts of each request to the endpoint: one for all texts, and one for each image."""
        contents: list[tuple[Subject, tuple[str | bytes, ...]]] = []
        find = spec.region.find if isinstance(spec, InpaintSpec) else getattr(spec, "find", None)
        texts = [*texts_of(spec), (find and find.text) or ""]
        for refinement in getattr(spec, "refine", ()):
            texts += [refinement.detect, refinement.prompt or "", refinement.negative_prompt or ""]
        given = tuple(text for text in texts if text.strip())
        if given and "prompt" in self._subjects:
            contents.append(("prompt", given))
        if "input" in self._subjects:
            masks = {spec.region.mask} if isinstance(spec, InpaintSpec) else set()
            masks |= {region.mask for region in spec.regions} if isinstance(spec, Img2ImgSpec) else set()
            contents += [("input", (blobs[one],)) for one in spec.inputs if one not in masks and one in blobs]
        return contents

    @contextmanager
    def _slot(self, owner: str) -> Iterator[None]:
        if self._open.total() >= MAX_OPEN or self._open[owner] >= self._share:
            raise Overloaded("Too many requests wait for moderation; try again in a few seconds.")
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            # Drop owners without requests.
            self._open += Counter()

    async def _verdict(self, subject: Subject, content: tuple[str | bytes, ...]) -> Verdict:
        # Images take a while to encode.
        body = await run_sync(request_body, *content) if subject == "input" else request_body(*content)
        return await self._moderator.verdict(body, subject, attempts=ATTEMPTS)


def texts_of(spec: JobSpec) -> tuple[str, ...]:
    """Return all prompts of a job."""
    regions = spec.regions if isinstance(spec, Img2ImgSpec) else ()
    return (
        getattr(spec, "prompt", ""),
        getattr(spec, "negative_prompt", ""),
        *(region.prompt for region in regions),
    )
