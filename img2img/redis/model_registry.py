"""The models that workers announce, in Redis."""

from collections.abc import Iterable

from redis import Redis
from rq.utils import as_text

from img2img.domain.model_card import ModelCard, WorkerThroughput

CARDS = "i2i:models"  # hash: model name -> card of whoever announced it last; outlives its workers
LIVE = "i2i:workers:{worker}"  # string with a time to live: the names that this worker serves, newline-separated
PACE = "i2i:pace:{worker}"  # string with a time to live: work per second, and work in hand
WORKERS = "i2i:workers"  # set of worker names that have announced themselves


class ModelRegistry:
    """Which models are known, and which are served by a live worker."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def register(self, worker: str, cards: Iterable[ModelCard], ttl_s: int) -> None:
        """Says that `worker` serves these models for the next ttl_s seconds. Call it again before they are over."""
        cards = list(cards)
        with self._redis.pipeline() as pipe:
            pipe.hset(CARDS, mapping={card.name: card.model_dump_json() for card in cards})
            pipe.set(LIVE.format(worker=worker), "\n".join(card.name for card in cards), ex=ttl_s)
            pipe.sadd(WORKERS, worker)
            pipe.execute()

    def report_throughput(self, worker: str, pace: WorkerThroughput, ttl_s: int) -> None:
        """Says how fast `worker` works and how much it has in hand."""
        self._redis.set(PACE.format(worker=worker), f"{pace.per_second or ''} {pace.left}", ex=ttl_s)

    def throughputs(self, workers: Iterable[str]) -> list[WorkerThroughput]:
        """What those of the workers say who have said something lately."""
        said = self._redis.mget([PACE.format(worker=worker) for worker in workers])
        pairs = [str(as_text(text)).split(" ") for text in said if text is not None]
        return [WorkerThroughput(float(per_second) if per_second else None, float(left)) for per_second, left in pairs]

    def unregister(self, worker: str) -> None:
        """Says that `worker` has gone."""
        with self._redis.pipeline() as pipe:
            pipe.delete(LIVE.format(worker=worker), PACE.format(worker=worker))
            pipe.srem(WORKERS, worker)
            pipe.execute()

    def known(self) -> dict[str, ModelCard]:
        """Every model that was ever announced, by name: a job for it can wait for its worker to come back."""
        cards = self._redis.hgetall(CARDS)
        return {as_text(name): ModelCard.model_validate_json(card) for name, card in cards.items()}

    def live(self) -> dict[str, list[str]]:
        """Model names that live workers serve, each with its workers' names. Forgets workers that fell silent."""
        workers = sorted(as_text(name) for name in self._redis.smembers(WORKERS))
        if not workers:
            return {}
        served: dict[str, list[str]] = {}
        silent = []
        for worker, names in zip(workers, self._redis.mget([LIVE.format(worker=w) for w in workers]), strict=True):
            if names is None:
                silent.append(worker)
                continue
            for name in as_text(names).split("\n"):
                served.setdefault(name, []).append(worker)
        if silent:
            self._redis.srem(WORKERS, *silent)
        return served
