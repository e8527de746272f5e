"""The results of a batch as a zip archive, made while it is sent: one image is in memory at a time."""

import json
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from anyio.to_thread import run_sync

from img2img.domain.job import JobRecord
from img2img.domain.job_batch import BatchMember
from img2img.domain.parameters import Background
from img2img.errors import Gone, ResultDamaged
from img2img.redis.job_queue import JobQueue

from ..schemas.responses import ImageFormat, Job

# Jobs that are read at once.
PAGE = 100
# The parameters and errors of all jobs, one a line.
MANIFEST = "jobs.jsonl"
# Time of all files: the archive is the same whenever it is downloaded.
TIME = (1980, 1, 1, 0, 0, 0)


class _Chunks:
    """A file that cannot be read or seeked: it gives the bytes that were written to it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        """Take data."""
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def take(self) -> bytes:
        """Return the bytes written since the last call."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data


@dataclass(frozen=True)
class BatchArchive:
    """Makes the archive of a batch.

    Attributes:
        read: Returns an image of a job in the wanted format. One that is damaged, or was deleted meanwhile, is left
            out: then it raises Gone or ResultDamaged.
    """

    queue: JobQueue
    read: Callable[[JobRecord, int], Awaitable[bytes]]
    image_format: ImageFormat

    async def parts(self, batch_id: str) -> AsyncIterator[bytes]:
        """Yield the archive in parts: the images of the jobs that have succeeded, then the manifest."""
        sink, names, lines = _Chunks(), _Names(), list[str]()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
            start = 0
            while page := await run_sync(self.queue.batches.job_ids, batch_id, start, PAGE):
                start = page[-1][1] + 1
                for record in await run_sync(self.queue.job_store.get_all, [job_id for job_id, _ in page]):
                    if record is None:
                        continue
                    files = []
                    for image in record.images:
                        with suppress(Gone, ResultDamaged):
                            image_format = format_of(record, self.image_format)
                            data = await self.read(record, image.index)
                            name = names.of(record, image.index, image_format)
                            archive.writestr(zipfile.ZipInfo(name, TIME), data)
                            files.append(name)
                            yield sink.take()
                    document = {"files": files, **Job.from_record(record).model_dump(mode="json")}
                    lines.append(json.dumps(document) + "\n")
            manifest = zipfile.ZipInfo(MANIFEST, TIME)
            manifest.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(manifest, "".join(lines))
        yield sink.take()


def format_of(record: JobRecord, wanted: ImageFormat) -> ImageFormat:
    """Return the format of the images of a job: PNG instead of JPEG if they are transparent."""
    is_transparent = getattr(record.spec, "background", None) is Background.TRANSPARENT
    return ImageFormat.PNG if is_transparent and wanted is ImageFormat.JPEG else wanted


class _Names:
    """Names of the files, each of which is used once."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._used: set[str] = set()

    def of(self, record: JobRecord, index: int, image_format: ImageFormat) -> str:
        member = record.batch or BatchMember(id="", index=0)
        stem = member.name or f"{member.index:05}"
        if record.spec.num_images > 1:
            stem = f"{stem}-{index}"
        suffix = "jpg" if image_format is ImageFormat.JPEG else image_format.value
        return f"{self._unique(stem)}.{suffix}"

    def _unique(self, stem: str) -> str:
        """Return the stem, with a number if it is used. Another request may have that as its name."""
        # Names that differ by case only are the same file on some systems.
        key, name = stem.lower(), stem
        while name.lower() in self._used:
            self._seen[key] += 1
            name = f"{stem}-{self._seen[key] + 1}"
        self._used.add(name.lower())
        return name
