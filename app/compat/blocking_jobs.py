"""Jobs of compatibility APIs, which respond when the job has ended."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from img2img.domain.job import JobRecord, JobStatus
from img2img.errors import Flagged, Gone, Unavailable
from img2img.stored_images import read_result

from ..dependencies import (
    DecodersDep,
    HeldBytesDep,
    JobChangesDep,
    ModelsDep,
    QueueDep,
    RedisDep,
    SettingsDep,
    StoreDep,
    StoreThreadsDep,
)
from ..http.errors import FlaggedRequest
from ..progress.long_poll import wait_for_end
from ..schemas.requests import ControlMapRequest, Img2ImgRequest
from ..submission.submit import JobSubmitterDep

# Seconds between checks that the client is still connected.
DISCONNECT_POLL_S = 2.0
# A result is in memory as PNG, in base64, and in the JSON of the response.
RESULT_COPIES = 4


@dataclass(frozen=True)
class BlockingJobs:
    """Submits jobs for a client that waits for the results in the same request."""

    request: Request
    settings: SettingsDep
    queue: QueueDep
    store: StoreDep
    store_threads: StoreThreadsDep
    held_bytes: HeldBytesDep
    models: ModelsDep
    decoders: DecodersDep
    job_changes: JobChangesDep
    redis: RedisDep
    submitter: JobSubmitterDep

    async def start(self, request: Img2ImgRequest | ControlMapRequest, part: int = 0) -> JobRecord:
        """Queue a job. Raises the errors of `POST /img2img` or `POST /control-maps`.

        Args:
            part: Number of the job within the request, which has one idempotency key for all.
        """
        key = self.submitter.idempotency_key
        if part and key:
            return (await replace(self.submitter, idempotency_key=f"{key}/{part}").submit(request)).record
        return (await self.submitter.submit(request)).record

    async def end(self, job_id: str) -> JobRecord:
        """Wait for the end of the job and return its record.

        If the client disconnects, or the process stops, the job is cancelled: no client could get its images. With an
        idempotency key it goes on: the client can repeat the request and get them.

        Raises:
            ClientDisconnect: The client has disconnected.
            Unavailable: The process stops.
        """
        while True:
            record = await wait_for_end(job_id, DISCONNECT_POLL_S, self.queue, self.job_changes)
            if record.status.is_terminal:
                return record
            if self.job_changes.is_closed:
                await self._cancel(job_id)
                raise Unavailable("The server is stopping; send the request again.")
            await self.cancel_if_disconnected(job_id)

    async def cancel_if_disconnected(self, job_id: str) -> None:
        """Cancel a job without an idempotency key if the client has disconnected. Raises ClientDisconnect."""
        if await self.request.is_disconnected():
            await self._cancel(job_id)
            raise ClientDisconnect

    async def _cancel(self, job_id: str) -> None:
        if not self.submitter.idempotency_key:
            await run_sync(self.queue.cancel, job_id)

    def release_body(self) -> None:
        """Count the request body as released, when nothing refers to it any more."""
        self.held_bytes.release()

    async def pngs(self, record: JobRecord) -> Sequence[bytes]:
        """Return the images of a job that has succeeded.

        Raises:
            FlaggedRequest: All images were flagged.
            Gone: The job has failed or was cancelled. Not an error that clients retry.
            ResultDamaged: A stored image is damaged or missing.
        """
        if record.status is not JobStatus.SUCCEEDED:
            if record.error and record.error.code == Flagged.code:
                raise FlaggedRequest("result")
            raise Gone(record.error.message if record.error else f"The job was {record.status}.")
        self.held_bytes.add(RESULT_COPIES * sum(image.bytes for image in record.images))
        return await self.store_threads.run(self._read_pngs, record)

    def _read_pngs(self, record: JobRecord) -> Sequence[bytes]:
        job_store = self.queue.job_store
        return [read_result(self.store, job_store, record, index) for index in (image.index for image in record.images)]


BlockingJobsDep = Annotated[BlockingJobs, Depends(BlockingJobs)]
