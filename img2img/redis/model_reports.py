"""Reports of workers about how they follow their model file and changes by request."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict
from redis import Redis

from img2img.redis import keys

# A worker repeats its report more often than this. An old report is of a process that was killed.
TTL_S = 30
IN_THE_LOG = "the reason is in the log of the worker"


class WorkerReport(BaseModel):
    """How a worker follows changes of its models.

    Attributes:
        revision: Number of the latest change by request that it follows.
        refused: Why it ignores the change of a model by request, by name of the model. Can contain paths.
        loras_left_out: By name of the model, its LoRAs that could not be loaded, and why. Can contain paths.
        file_error: Why it ignores the latest version of its model file. Contains paths.
    """

    model_config = ConfigDict(frozen=True)

    revision: int = 0
    refused: dict[str, str] = {}
    loras_left_out: dict[str, dict[str, str]] = {}
    file_error: str | None = None

    def file_notice(self, *, with_reason: bool) -> str | None:
        """Return that the model file is ignored, or None.

        Args:
            with_reason: Whether to include the reason, which contains paths.
        """
        reason = self.file_error if with_reason else IN_THE_LOG
        return f"a change of the model file is ignored: {reason}" if self.file_error else None

    def lora_notices(self, *, with_reason: bool) -> list[str]:
        """Return the LoRAs that are left out. See `file_notice`."""
        return [
            f"the LoRA {lora} is left out of the model {name}: {reason if with_reason else IN_THE_LOG}"
            for name, loras in self.loras_left_out.items()
            for lora, reason in loras.items()
        ]

    def notices(self, *, with_reason: bool) -> list[str]:
        """Return the changes that the worker ignores, for an operator."""
        refused = [
            f"a change of the model {name} is ignored: {reason if with_reason else IN_THE_LOG}"
            for name, reason in self.refused.items()
        ]
        file = self.file_notice(with_reason=with_reason)
        return [*([file] if file else []), *refused, *self.lora_notices(with_reason=with_reason)]


class WorkerReports:
    """The reports of workers."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def publish(self, worker: str, report: WorkerReport) -> None:
        """Publish the report of a worker. Repeat this more often than every `TTL_S` seconds."""
        self._redis.set(keys.WORKER_REPORT.format(worker=worker), report.model_dump_json(), ex=TTL_S)

    def withdraw(self, worker: str) -> None:
        """Remove the report of a worker that stops."""
        self._redis.delete(keys.WORKER_REPORT.format(worker=worker))

    def read(self, workers: Iterable[str]) -> dict[str, WorkerReport]:
        """Return the reports of these workers, by worker, where there is one."""
        names = list(workers)
        if not names:
            return {}
        found = self._redis.mget([keys.WORKER_REPORT.format(worker=name) for name in names])
        reports = zip(names, found, strict=True)
        return {name: WorkerReport.model_validate_json(report) for name, report in reports if report is not None}
