"""Prometheus metrics of the models that a worker loads."""

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LOAD_BUCKETS = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


class PoolMetrics:
    """Counts loads and evictions. Labels are names of models and devices.

    Args:
        registry: where the metrics are served.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._loads = Counter(
            "img2img_model_loads", "Loads of models by outcome.", ["model", "outcome"], registry=registry
        )
        self._evictions = Counter("img2img_model_evictions", "Models unloaded.", ["model"], registry=registry)
        self._seconds = Histogram(
            "img2img_model_load_seconds",
            "Time to read the weights of a model and to warm it up.",
            ["model"],
            buckets=LOAD_BUCKETS,
            registry=registry,
        )
        self._bytes = Gauge(
            "img2img_model_memory_bytes",
            "Memory of the weights of a loaded model.",
            ["model", "device"],
            registry=registry,
        )
        self._loaded = Gauge("img2img_models_loaded", "Models in memory.", registry=registry)

    def record_load(self, model: str, seconds: float) -> None:
        """Count a model that was loaded."""
        self._loads.labels(model, "loaded").inc()
        self._seconds.labels(model).observe(seconds)
        # A counter that begins at 0 shows the first increase.
        self._evictions.labels(model)

    def record_failure(self, model: str) -> None:
        """Count a model that could not be loaded."""
        self._loads.labels(model, "failed").inc()

    def record_eviction(self, model: str) -> None:
        """Count a model that was unloaded."""
        self._evictions.labels(model).inc()

    def record_memory(self, models: Sequence[tuple[str, Mapping[str, int]]]) -> None:
        """Set the memory of all models in memory, by name and device. A name has two while its model is replaced."""
        self._loaded.set(len(models))
        self._bytes.clear()
        for name, memory in models:
            for device, size in memory.items():
                self._bytes.labels(name, device).inc(size)
