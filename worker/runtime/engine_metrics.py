"""The engine and its device as Prometheus sees them, read when it asks: the engine itself knows nothing of it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine.engine import Engine

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class EngineCollector(Collector):
    """Metrics of one engine. memory: bytes of its GPU by kind, none where there is no GPU."""

    def __init__(self, engine: Engine, device: str, memory: Callable[[str], Mapping[str, int]]) -> None:
        self._engine = engine
        self._device = device
        self._memory = memory

    def collect(self) -> Iterable[Metric]:
        slots = self._engine.slots
        yield GaugeMetricFamily("img2img_engine_slots", "Pictures and tiles that can be in flight.", value=slots)
        yield GaugeMetricFamily(
            "img2img_engine_slots_busy", "Those in flight.", value=min(slots, slots - self._engine.free_slots)
        )
        yield from self._rows()
        memory = GaugeMetricFamily("img2img_gpu_memory_bytes", "Memory of the GPU.", labels=["device", "kind"])
        for kind, size in self._memory(self._device).items():
            memory.add_metric([self._device, kind], size)
        yield memory

    def _rows(self) -> Iterator[Metric]:
        rows = CounterMetricFamily(
            "img2img_engine_rows",
            "Rows of forward passes: useful, or padded to fill a batch.",
            labels=["stage", "kind"],
        )
        batches = HistogramMetricFamily("img2img_engine_batch_rows", "Useful rows of a forward pass.", labels=["stage"])
        calls: defaultdict[str, dict[int, int]] = defaultdict(dict)
        for (stage, size), count in dict(self._engine.batches_run).items():  # a copy: the engine goes on
            calls[stage][size] = count
        for stage, by_size in sorted(calls.items()):
            useful = sum(size * count for size, count in by_size.items())
            rows.add_metric([stage, "useful"], useful)
            rows.add_metric([stage, "padded"], 0)
            limits = [(str(float(limit)), sum(n for size, n in by_size.items() if size <= limit)) for limit in ROWS]
            batches.add_metric([stage], [*limits, ("+Inf", sum(by_size.values()))], sum_value=useful)
        yield rows
        yield batches
