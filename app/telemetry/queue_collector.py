"""Prometheus metrics of the queue, read from Redis at each scrape.

They are identical on every API server: aggregate with `max`, not `sum`.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from img2img.domain.job import JobStatus
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import JOB, OUTBOX
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.rq_adapter import rq_queue


class CellCollector(Collector):
    """Collects the metrics of all cells, with the label `cell`; without it if the service has no cells.

    Args:
        collectors: By the name of the cell, which is empty for a service without cells.
    """

    def __init__(self, collectors: Mapping[str, "QueueCollector"]) -> None:
        self._collectors = collectors

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for cell, collector in self._collectors.items():
            for found in collector.collect():
                metric = metrics.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                label = {"cell": cell} if cell else {}
                metric.samples += [sample._replace(labels={**sample.labels, **label}) for sample in found.samples]
        yield from metrics.values()


class QueueCollector(Collector):
    """Collects the metrics of one Redis in a few round trips, independent of the length of the queue."""

    def __init__(self, redis: Redis, queue: JobQueue, models: ModelRegistry) -> None:
        self._redis = redis
        self._queue = queue
        self._models = models

    def describe(self) -> Iterable[Metric]:
        # Without this, registering the collector would call `collect`, while Redis may be unavailable.
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            metrics = list(self._from_redis())
        except (RedisError, OSError):
            metrics = []
        yield GaugeMetricFamily("img2img_redis_up", "1 if Redis responds, else 0.", value=float(bool(metrics)))
        yield from metrics

    def _from_redis(self) -> Iterator[Metric]:
        models = self._models.known_names()
        yield from self._backlog(models)
        yield self._oldest_age(models)
        running = GaugeMetricFamily("img2img_jobs_running", "Jobs in flight.", labels=["model"])
        workers = GaugeMetricFamily("img2img_workers", "Live workers.", labels=["model"])
        live = self._models.live()
        for model in models:
            running.add_metric([model], rq_queue(model, self._redis).started_job_registry.get_job_count(cleanup=False))
            workers.add_metric([model], len(live.get(model, ())))
        yield running
        yield workers
        yield GaugeMetricFamily(
            "img2img_clock_skew_seconds",
            "How far the clock of this host is ahead of that of Redis.",
            value=self._clock_skew_s(),
        )
        yield from self._delayed_fsyncs()
        yield self._ended_jobs(models)
        yield GaugeMetricFamily(
            "img2img_webhooks_pending",
            "Webhook events not yet delivered.",
            value=self._redis.zcard(OUTBOX),
        )
        yield GaugeMetricFamily(
            "img2img_stored_input_bytes",
            "Bytes of input images and uploads in the blob store.",
            value=self._queue.input_images.stored_bytes(),
        )

    def _delayed_fsyncs(self) -> Iterator[Metric]:
        """Yield nothing if Redis has no append-only file, or if its user may not read the statistics."""
        try:
            delayed = self._redis.info("persistence").get("aof_delayed_fsync")
        except NoPermissionError:
            delayed = None
        if delayed is not None:
            yield CounterMetricFamily(
                "img2img_redis_delayed_fsyncs",
                "Writes that Redis has acknowledged late or before they were in its file, because its disk is slow.",
                value=delayed,
            )

    def _clock_skew_s(self) -> float:
        clock = redis_clock(self._redis)
        clock.now()
        return clock.skew_s or 0.0

    def _backlog(self, models: list[str]) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("img2img_queue_jobs", "Queued jobs.", labels=["model", "priority"])
        work = GaugeMetricFamily(
            "img2img_queue_megapixel_steps",
            "Work of queued jobs, in megapixel-steps.",
            labels=["model", "priority"],
        )
        for (model, priority), (count, cost) in self._queue.job_store.fair_queue.backlog(models).items():
            jobs.add_metric([model, priority], count)
            work.add_metric([model, priority], cost)
        yield jobs
        yield work

    def _oldest_age(self, models: list[str]) -> Metric:
        oldest = GaugeMetricFamily(
            "img2img_queue_oldest_seconds", "Age of the first job in the RQ list.", labels=["model"]
        )
        now = redis_clock(self._redis).now()
        for model in models:
            first = self._redis.lindex(rq_queue(model, self._redis).key, 0)
            created_at = self._redis.hget(JOB.format(id=decode(first)), "created_at") if first else None
            oldest.add_metric([model], max(0.0, now - float(created_at)) if created_at else 0.0)
        return oldest

    def _ended_jobs(self, models: list[str]) -> Metric:
        ended = CounterMetricFamily("img2img_jobs_ended", "Ended jobs by final status.", labels=["model", "status"])
        counts = self._queue.job_store.ended_counts()
        for model in sorted({*models, *(model for model, _ in counts)}):
            for status in JobStatus:
                if status.is_terminal:
                    ended.add_metric([model, status], counts.get((model, status), 0))
        return ended
