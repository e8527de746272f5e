"""Workers that load their models or could not start, for the readiness check."""

from pydantic import BaseModel, ConfigDict
from redis import Redis

from img2img.redis import keys
from img2img.redis.decode import decode

# A worker repeats its report every second. An old report is of a process that was killed.
LOADING_TTL_S = 60
# Longer than a container waits before it starts a worker again, and loads its models.
ERROR_TTL_S = 600
# Smaller downloads, as of configurations, are not mentioned.
_SHOWN_BYTES = 50_000


class WorkerStart(BaseModel):
    """A worker that does not take jobs yet."""

    model_config = ConfigDict(frozen=True)

    stage: str
    seconds: int = 0
    # Bytes of files that are being downloaded from the model hub.
    downloaded: int = 0
    download_size: int = 0
    # Part of the weights of the model that is being loaded, if that is known.
    percent: int | None = None
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
        read = f": {self.percent} % read" if self.percent is not None and not self.downloaded else ""
        return f"{self.stage}{self._download()}{read}, {self.seconds} s{killed}"

    def _download(self) -> str:
        if self.downloaded < _SHOWN_BYTES:
            return ""
        size = max(self.download_size, self.downloaded)
        unit, divisor = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6)
        return f": downloaded {self.downloaded / divisor:.1f} of {size / divisor:.1f} {unit}"


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

    def finish(self, worker: str) -> None:
        """Remove a worker that has started, and the errors of others: their next start reports them again."""
        others = [name for name, start in self.all().items() if start.error is not None]
        for name in (worker, *others):
            self._redis.delete(keys.WORKER_START.format(worker=name))
            self._redis.srem(keys.STARTING_WORKERS, name)

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
