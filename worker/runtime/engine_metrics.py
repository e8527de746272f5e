"""Prometheus metrics of the engine and its device, read at each scrape."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine.engine import Engine

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class EngineCollector(Collector):
    """Metrics of one engine.

    Args:
        engine: the engine.
        device: its device.
        memory: returns the memory of the device in bytes, by kind. Empty for a device without metrics.
    """

    def __init__(self, engine: Engine, device: str, memory: Callable[[str], Mapping[str, int]]) -> None:
        self._engine = engine
        self._device = device
        self._memory = memory

    def collect(self) -> Iterable[Metric]:
        slots = self._engine.slots
        busy = min(slots, slots - self._engine.free_slots)
        yield GaugeMetricFamily("img2img_engine_slots", "Images or tiles that can be in flight.", value=slots)
        yield GaugeMetricFamily("img2img_engine_slots_busy", "Images or tiles in flight.", value=busy)
        yield from self._rows()
        memory = GaugeMetricFamily("img2img_gpu_memory_bytes", "Memory of the GPU.", labels=["device", "kind"])
        for kind, size in self._memory(self._device).items():
            memory.add_metric([self._device, kind], size)
        yield memory

    def _rows(self) -> Iterator[Metric]:
        rows = CounterMetricFamily(
            "img2img_engine_rows",
            "Rows of forward passes, of jobs (useful) or to fill the fixed shapes of compiled models (padded).",
            labels=["stage", "kind"],
        )
        batches = HistogramMetricFamily("img2img_engine_batch_rows", "Rows of a forward pass.", labels=["stage"])
        calls: defaultdict[str, dict[int, int]] = defaultdict(dict)
        # Iterate over a copy: the engine keeps counting on its own thread.
        for (stage, size), count in dict(self._engine.batches_run).items():
            calls[stage][size] = count
        for stage, by_size in sorted(calls.items()):
            useful = sum(size * count for size, count in by_size.items())
            rows.add_metric([stage, "useful"], useful)
            rows.add_metric([stage, "padded"], self._engine.rows_padded[stage])
            counts = [
                (str(float(limit)), sum(n for size, n in by_size.items() if size <= limit)) for limit in ROW_BUCKETS
            ]
            batches.add_metric([stage], [*counts, ("+Inf", sum(by_size.values()))], sum_value=useful)
        yield rows
        yield batches
