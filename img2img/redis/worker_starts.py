"""Workers that load their models or could not start, for the readiness check."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict
from redis import Redis

from img2img.redis import keys
from img2img.redis.decode import decode

# A worker repeats its report every second. An old report is of a process that was killed.
LOADING_TTL_S = 60
# Longer than a container waits before it starts a worker again.
ERROR_TTL_S = 900


class WorkerStart(BaseModel):
    """A worker that does not take jobs yet."""

    model_config = ConfigDict(frozen=True)

    stage: str
    seconds: int = 0
    # Bytes of files that are being downloaded from the model hub.
    downloaded: int = 0
    download_size: int = 0
    # Why the worker could not start.
    error: str | None = None
    # Whether the start before this one ended without a reason, as when the system kills a process.
    was_killed: bool = False

    def describe(self, *, with_error: bool = True) -> str:
        """Return stage, progress and time in a few words.

        Args:
            with_error: Whether to include the error message, which can contain paths.
        """
        if self.error is not None:
            return f"cannot start: {self.error}" if with_error else "cannot start: the reason is in its log"
        killed = "; its last start was killed while loading: out of memory?" if self.was_killed else ""
        return f"{self.stage}{self._download()}, {self.seconds} s{killed}"

    def _download(self) -> str:
        if not self.downloaded:
            return ""
        return f": downloaded {self.downloaded / 1e9:.2f} of {max(self.download_size, self.downloaded) / 1e9:.2f} GB"


class WorkerStarts:
    """The reports of workers that start."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def report(self, worker: str, start: WorkerStart) -> None:
        """Report the state of a worker. Repeat this while it loads."""
        key = keys.WORKER_START.format(worker=worker)
        with self._redis.pipeline() as pipe:
            pipe.set(key, start.model_dump_json(), ex=LOADING_TTL_S if start.error is None else ERROR_TTL_S)
            pipe.sadd(keys.STARTING_WORKERS, worker)
            pipe.execute()

    def find(self, worker: str) -> WorkerStart | None:
        """Return the last report of a worker, None if it has expired or the worker has started."""
        report = self._redis.get(keys.WORKER_START.format(worker=worker))
        return None if report is None else WorkerStart.model_validate_json(report)

    def remove(self, workers: Iterable[str]) -> None:
        """Remove workers that have started."""
        for worker in workers:
            self._redis.delete(keys.WORKER_START.format(worker=worker))
            self._redis.srem(keys.STARTING_WORKERS, worker)

    def all(self) -> dict[str, WorkerStart]:
        """Return the reports that have not expired, by worker."""
        workers = sorted(map(decode, self._redis.smembers(keys.STARTING_WORKERS)))
        if not workers:
            return {}
        reports = self._redis.mget([keys.WORKER_START.format(worker=worker) for worker in workers])
        found = zip(workers, reports, strict=True)
        starts = {name: WorkerStart.model_validate_json(report) for name, report in found if report is not None}
        if expired := set(workers) - starts.keys():
            self._redis.srem(keys.STARTING_WORKERS, *expired)
        return starts
