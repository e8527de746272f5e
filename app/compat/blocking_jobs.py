"""Jobs of compatibility APIs, which respond when the job has ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends, Request

from img2img.domain.job import JobRecord, JobStatus
from img2img.errors import Gone
from img2img.stored_images import read_result

from ..dependencies import DecodersDep, JobChangesDep, ModelsDep, QueueDep, RedisDep, SettingsDep, StoreDep
from ..progress.long_poll import wait_for_end
from ..schemas.requests import Img2ImgRequest
from ..submission.submit import JobSubmitterDep

# Seconds between checks that the client is still connected.
DISCONNECT_POLL_S = 2.0


@dataclass(frozen=True)
class BlockingJobs:
    """Submits jobs for a client that waits for the results in the same request."""

    request: Request
    settings: SettingsDep
    queue: QueueDep
    store: StoreDep
    models: ModelsDep
    decoders: DecodersDep
    job_changes: JobChangesDep
    redis: RedisDep
    submitter: JobSubmitterDep

    async def start(self, request: Img2ImgRequest) -> JobRecord:
        """Queue a job. Raises the errors of `POST /img2img`."""
        return (await self.submitter.submit(request)).record

    async def end(self, job_id: str) -> JobRecord:
        """Wait for the end of the job and return its record. Cancels the job if the client disconnects."""
        while True:
            record = await wait_for_end(job_id, DISCONNECT_POLL_S, self.queue, self.job_changes)
            if record.status.is_terminal:
                return record
            if await self.request.is_disconnected():
                await run_sync(self.queue.cancel, job_id)

    def pngs(self, record: JobRecord) -> Sequence[bytes]:
        """Return the images of a job that has succeeded.

        Raises:
            Gone: The job has failed or was cancelled. Not an error that clients retry.
            ResultDamaged: A stored image is damaged or missing.
        """
        if record.status is not JobStatus.SUCCEEDED:
            raise Gone(record.error.message if record.error else f"The job was {record.status}.")
        job_store = self.queue.job_store
        return [read_result(self.store, job_store, record, index) for index in range(len(record.images))]


BlockingJobsDep = Annotated[BlockingJobs, Depends(BlockingJobs)]
