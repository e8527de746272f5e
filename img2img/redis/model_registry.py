"""The models that workers serve."""

from collections.abc import Iterable
from contextlib import suppress

from redis import Redis
from redis.exceptions import ResponseError

from img2img.domain.model_card import ModelCard, WorkerThroughput
from img2img.redis import keys
from img2img.redis.decode import decode


class ModelRegistry:
    """The known models, the live workers that serve them, and the throughput of these workers."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def register(self, worker: str, cards: Iterable[ModelCard], ttl_s: int) -> None:
        """Register a worker and its models for ttl_s seconds. Repeat this before they are over."""
        cards = list(cards)
        with self._redis.pipeline() as pipe:
            pipe.hset(keys.MODEL_CARDS, mapping={card.name: card.model_dump_json() for card in cards})
            pipe.set(keys.WORKER_MODELS.format(worker=worker), "\n".join(card.name for card in cards), ex=ttl_s)
            pipe.sadd(keys.WORKERS, worker)
            pipe.execute()

    def report_throughput(self, worker: str, throughput: WorkerThroughput, ttl_s: int) -> None:
        """Report the speed of a worker and the work that it has in flight."""
        key = keys.WORKER_THROUGHPUT.format(worker=worker)
        self._redis.set(key, f"{throughput.per_second or ''} {throughput.left}", ex=ttl_s)

    def throughputs(self, workers: Iterable[str]) -> list[WorkerThroughput]:
        """Return the throughputs that these workers have reported, where one is known."""
        reports = self._redis.mget([keys.WORKER_THROUGHPUT.format(worker=worker) for worker in workers])
        pairs = [decode(report).split(" ") for report in reports if report is not None]
        return [WorkerThroughput(float(per_second) if per_second else None, float(left)) for per_second, left in pairs]

    def unregister(self, worker: str) -> None:
        """Remove a worker that stops."""
        with self._redis.pipeline() as pipe:
            pipe.delete(keys.WORKER_MODELS.format(worker=worker), keys.WORKER_THROUGHPUT.format(worker=worker))
            pipe.srem(keys.WORKERS, worker)
            pipe.execute()

    def known(self) -> dict[str, ModelCard]:
        """Return the cards of all models that were ever registered, by name.

        Jobs for a model without live workers wait until one starts.
        """
        cards = self._redis.hgetall(keys.MODEL_CARDS)
        return {decode(name): ModelCard.model_validate_json(card) for name, card in cards.items()}

    def find(self, name: str) -> ModelCard | None:
        """Return the card of a model that was ever registered, if there is one."""
        card = self._redis.hget(keys.MODEL_CARDS, name)
        return None if card is None else ModelCard.model_validate_json(card)

    def known_names(self) -> list[str]:
        """Return the names of all models that were ever registered."""
        return sorted(map(decode, self._redis.hkeys(keys.MODEL_CARDS)))

    def forget(self, name: str) -> None:
        """Remove the card of a model, so that requests for it are rejected."""
        self._redis.hdel(keys.MODEL_CARDS, name)

    def live_workers(self) -> list[str]:
        """Return the names of the live workers, also of those that serve no model."""
        workers = sorted(map(decode, self._redis.smembers(keys.WORKERS)))
        models = self._redis.mget([keys.WORKER_MODELS.format(worker=worker) for worker in workers]) if workers else []
        return [worker for worker, names in zip(workers, models, strict=True) if names is not None]

    def live(self) -> dict[str, list[str]]:
        """Return the models that live workers serve, each with the names of its workers."""
        workers = sorted(map(decode, self._redis.smembers(keys.WORKERS)))
        if not workers:
            return {}
        served: dict[str, list[str]] = {}
        expired = []
        models = self._redis.mget([keys.WORKER_MODELS.format(worker=worker) for worker in workers])
        for worker, names in zip(workers, models, strict=True):
            if names is None:
                expired.append(worker)
                continue
            # A worker may serve no model.
            for name in decode(names).splitlines():
                served.setdefault(name, []).append(worker)
        if expired:
            # Redis may reject writes, and answer reads.
            with suppress(ResponseError):
                self._redis.srem(keys.WORKERS, *expired)
        return served
