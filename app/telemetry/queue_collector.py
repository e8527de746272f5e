"""The queue as Prometheus sees it, read from Redis when it asks.

Every front end says the same of it: take `max` over them, not `sum`.
"""

import time
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError
from rq.utils import as_text

from img2img.domain.job import JobStatus
from img2img.redis.job_queue import JobQueue, rq_queue
from img2img.redis.job_store import OUTBOX, RECORD
from img2img.redis.model_registry import CARDS, ModelRegistry


class QueueCollector(Collector):
    """Metrics of one Redis, in a few round trips, whatever the length of the queue."""

    def __init__(self, redis: Redis, queue: JobQueue, models: ModelRegistry) -> None:
        self._redis = redis
        self._queue = queue
        self._models = models

    def describe(self) -> Iterable[Metric]:
        return []  # said by `collect`, and not asked for when this is registered: Redis may be away then

    def collect(self) -> Iterator[Metric]:
        try:
            found = list(self._found())
        except (RedisError, OSError):
            found = []
        yield GaugeMetricFamily("img2img_redis_up", "Whether Redis answers.", value=float(bool(found)))
        yield from found

    def _found(self) -> Iterator[Metric]:
        models = sorted(str(as_text(name)) for name in self._redis.hkeys(CARDS))
        yield from self._waiting(models)
        yield self._oldest(models)
        running = GaugeMetricFamily("img2img_jobs_running", "Jobs that workers have in hand.", labels=["model"])
        workers = GaugeMetricFamily("img2img_workers", "Live workers.", labels=["model"])
        live = self._models.live()
        for model in models:
            running.add_metric([model], rq_queue(model, self._redis).started_job_registry.get_job_count(cleanup=False))
            workers.add_metric([model], len(live.get(model, ())))
        yield running
        yield workers
        yield self._ended(models)
        yield GaugeMetricFamily(
            "img2img_webhooks_pending",
            "Ends of jobs that webhooks have still to tell.",
            value=self._redis.zcard(OUTBOX),
        )

    def _waiting(self, models: list[str]) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("img2img_queue_jobs", "Jobs that wait.", labels=["model", "priority"])
        work = GaugeMetricFamily(
            "img2img_queue_megapixel_steps", "Work that waits, in megapixel-steps.", labels=["model", "priority"]
        )
        for (model, priority), (count, cost) in self._queue.job_store.fair_queue.backlog(models).items():
            jobs.add_metric([model, priority], count)
            work.add_metric([model, priority], cost)
        yield jobs
        yield work

    def _oldest(self, models: list[str]) -> Metric:
        oldest = GaugeMetricFamily(
            "img2img_queue_oldest_seconds", "How long the first job of RQ's list has been there.", labels=["model"]
        )
        for model in models:
            first = self._redis.lindex(rq_queue(model, self._redis).key, 0)
            created_at = self._redis.hget(RECORD.format(id=as_text(first)), "created_at") if first else None
            oldest.add_metric([model], max(0.0, time.time() - float(created_at)) if created_at else 0.0)
        return oldest

    def _ended(self, models: list[str]) -> Metric:
        ended = CounterMetricFamily("img2img_jobs_ended", "Jobs by their end state.", labels=["model", "status"])
        counts = self._queue.job_store.ended()
        for model in sorted({*models, *(model for model, _ in counts)}):
            for status in JobStatus:
                if status.is_terminal:
                    ended.add_metric([model, status], counts.get((model, status), 0))
        return ended
