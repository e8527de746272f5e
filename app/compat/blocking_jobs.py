"""What foreign APIs have in common: they answer when the job is done, and drop it when nobody waits any more."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends, Request

from img2img.domain.job import JobRecord, JobStatus
from img2img.domain.spec import result_key
from img2img.errors import Gone

from ..dependencies import DecodersDep, JobChangesDep, ModelsDep, QueueDep, RedisDep, SettingsDep, StoreDep
from ..progress.long_poll import wait_for_end
from ..routes.img2img import plan, terms_of
from ..schemas.requests import Img2ImgRequest
from ..submission.submit import JobSubmitterDep

LOOK_S = 2.0  # how soon it is noticed that a client has gone


@dataclass(frozen=True)
class BlockingJobs:
    """Makes jobs for a client that waits on the line."""

    request: Request
    settings: SettingsDep
    queue: QueueDep
    store: StoreDep
    models: ModelsDep
    decoders: DecodersDep
    feed: JobChangesDep
    redis: RedisDep
    admission: JobSubmitterDep

    async def start(self, request: Img2ImgRequest) -> JobRecord:
        """Queues a job. Raises what `POST /img2img` answers with."""
        terms = terms_of(request, self.admission)
        return (await self.admission.admit(partial(plan, request, self.admission), terms)).record

    async def end(self, job_id: str) -> JobRecord:
        """The job when it has ended. Cancels it if the client hangs up first."""
        while True:
            record = await wait_for_end(job_id, LOOK_S, self.queue, self.feed)
            if record.status.is_terminal:
                return record
            if await self.request.is_disconnected():
                await run_sync(self.queue.cancel, job_id)

    def pngs(self, record: JobRecord) -> Sequence[bytes]:
        """The pictures of a job that has succeeded. Raises Gone for one that has not: asking again is no use."""
        if record.status is not JobStatus.SUCCEEDED:
            raise Gone(record.error.message if record.error else f"The job was {record.status}.")
        found = [self.store.get(result_key(record.id, image.index)) for image in record.images]
        return [png for png in found if png is not None]


BlockingJobsDep = Annotated[BlockingJobs, Depends(BlockingJobs)]
