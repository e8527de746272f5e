"""The models that workers serve."""

import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache

from pydantic import ValidationError
from redis import Redis
from redis.exceptions import ResponseError

from img2img.domain.model_card import ModelCard, WorkerThroughput
from img2img.domain.model_status import ModelState, ModelStatus
from img2img.redis import keys
from img2img.redis.clock import redis_clock
from img2img.redis.decode import decode

log = logging.getLogger(__name__)

# Without workers, these models are expected to be served again.
LAST_S = 24 * 3600

LOADED = ModelStatus(state=ModelState.LOADED)


class ModelRegistry:
    """The known models, the live workers that serve them, and the throughput of these workers."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._clock = redis_clock(redis)

    def register(
        self,
        worker: str,
        cards: Iterable[ModelCard],
        ttl_s: int,
        statuses: Mapping[str, ModelStatus] | None = None,
    ) -> None:
        """Register a worker and its models for ttl_s seconds. Repeat this before they are over, and after changes.

        Args:
            statuses: States of the models, by name; also of those without a card. Default: all are loaded.
        """
        cards = list(cards)
        if statuses is None:
            statuses = {card.name: LOADED for card in cards}
        now = self._clock.now()
        with self._redis.pipeline() as pipe:
            if cards:
                pipe.hset(keys.MODEL_CARDS, mapping={card.name: card.model_dump_json() for card in cards})
                pipe.zadd(keys.MODELS_SEEN, {card.name: now for card in cards})
            pipe.set(
                keys.WORKER_MODEL_STATES.format(worker=worker),
                json.dumps({name: status.model_dump(mode="json") for name, status in statuses.items()}),
                ex=ttl_s,
            )
            pipe.set(keys.WORKER_MODELS.format(worker=worker), "\n".join(card.name for card in cards), ex=ttl_s)
            pipe.sadd(keys.WORKERS, worker)
            pipe.execute()

    def report_throughput(self, worker: str, throughput: WorkerThroughput, ttl_s: int) -> None:
        """Report the speed of a worker and the work that it has in flight."""
        key = keys.WORKER_THROUGHPUT.format(worker=worker)
        self._redis.set(key, json.dumps(asdict(throughput)), ex=ttl_s)

    def throughputs(self, workers: Iterable[str]) -> list[WorkerThroughput]:
        """Return the throughputs that these workers have reported, where one is known."""
        reports = self._redis.mget([keys.WORKER_THROUGHPUT.format(worker=worker) for worker in workers])
        return [WorkerThroughput(**json.loads(report)) for report in reports if report is not None]

    def unregister(self, worker: str) -> None:
        """Remove a worker that stops."""
        with self._redis.pipeline() as pipe:
            pipe.delete(
                *(
                    key.format(worker=worker)
                    for key in (keys.WORKER_MODELS, keys.WORKER_MODEL_STATES, keys.WORKER_THROUGHPUT)
                )
            )
            pipe.srem(keys.WORKERS, worker)
            pipe.execute()

    def known(self) -> dict[str, ModelCard]:
        """Return the cards of all models that were ever registered, by name.

        Jobs for a model without live workers wait until one starts. A card of another version is read as far as this
        version understands it.
        """
        cards = {decode(name): _read_card(card) for name, card in self._redis.hgetall(keys.MODEL_CARDS).items()}
        return {name: card for name, card in cards.items() if card is not None}

    def find(self, name: str) -> ModelCard | None:
        """Return the card of a model that was ever registered, by its name or an alias, if there is one."""
        card = self._redis.hget(keys.MODEL_CARDS, name)
        return self._find_by_alias(name) if card is None else _read_card(card)

    def _find_by_alias(self, alias: str) -> ModelCard | None:
        """Return the card of the model with this alias. Of several, one that is served comes first."""
        cards = [card for _, card in sorted(self.known().items()) if alias in card.aliases]
        if len(cards) > 1:
            live = self.live()
            cards.sort(key=lambda card: card.name not in live)
        return cards[0] if cards else None

    def known_names(self) -> list[str]:
        """Return the names of all models that were ever registered."""
        return sorted(map(decode, self._redis.hkeys(keys.MODEL_CARDS)))

    def forget(self, name: str) -> None:
        """Remove the card of a model, so that requests for it are rejected."""
        with self._redis.pipeline() as pipe:
            pipe.hdel(keys.MODEL_CARDS, name)
            pipe.zrem(keys.MODELS_SEEN, name)
            pipe.execute()

    def is_served_by_others(self, name: str, worker: str) -> bool:
        """Return whether a live worker other than this one serves a model."""
        return any(other != worker for other in self.live().get(name, ()))

    def live(self) -> dict[str, list[str]]:
        """Return the models that live workers serve, each with the names of its workers.

        Not all of them need be loaded: see `states`.
        """
        served: dict[str, list[str]] = {}
        for worker, names in self._live_workers().items():
            for name in names:
                served.setdefault(name, []).append(worker)
        return served

    def served_last(self) -> list[str]:
        """Return the models that were served within LAST_S before the last worker stopped."""
        newest = self._redis.zrange(keys.MODELS_SEEN, -1, -1, withscores=True)
        if not newest:
            return []
        oldest = float(newest[0][1]) - LAST_S
        return sorted(map(decode, self._redis.zrangebyscore(keys.MODELS_SEEN, oldest, "+inf")))

    def states(self) -> dict[str, dict[str, ModelStatus]]:
        """Return the states of the models in each live worker, by worker and model."""
        workers = self._live_workers()
        if not workers:
            return {}
        reports = self._redis.mget([keys.WORKER_MODEL_STATES.format(worker=worker) for worker in workers])
        return {
            # A worker of an earlier version loads all of its models, and reports no states.
            worker: dict.fromkeys(names, LOADED) if report is None else _read_statuses(report)
            for (worker, names), report in zip(workers.items(), reports, strict=True)
        }

    def reserve_load(self, model: str, worker: str, ttl_s: int) -> bool:
        """Reserve the loading of a model for ttl_s seconds, so that two workers do not load it for the same jobs."""
        return bool(self._redis.set(keys.MODEL_LOAD.format(model=model), worker, nx=True, ex=ttl_s))

    def _live_workers(self) -> dict[str, list[str]]:
        """Return the names of the models of each live worker."""
        workers = sorted(map(decode, self._redis.smembers(keys.WORKERS)))
        if not workers:
            return {}
        models = self._redis.mget([keys.WORKER_MODELS.format(worker=worker) for worker in workers])
        found = dict(zip(workers, models, strict=True))
        if expired := [worker for worker, names in found.items() if names is None]:
            # Redis may reject writes, and answer reads.
            with suppress(ResponseError):
                self._redis.srem(keys.WORKERS, *expired)
        return {
            worker: list(filter(None, decode(names).split("\n")))
            for worker, names in found.items()
            if names is not None
        }


@lru_cache(maxsize=256)
def _complete_card(card: bytes | str) -> ModelCard:
    """Return the card that this text holds. Kept, because each submit reads one. Raises ValidationError."""
    return ModelCard.model_validate(json.loads(card))


def _read_card(card: bytes | str) -> ModelCard | None:
    """Read a card without the items of its lists that this version does not know; None if the rest is no card."""
    with suppress(ValidationError):
        return _complete_card(card)
    content = json.loads(card)
    while True:
        try:
            return ModelCard.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
        path = list(first["loc"])
        while path and not isinstance(path[-1], int):
            path.pop()
        if not path:
            log.warning("the card of %s cannot be read by this version: %s", content.get("name"), first["msg"])
            return None
        items = content
        for step in path[:-1]:
            items = items[step]
        del items[path[-1]]


def _read_statuses(report: bytes | str) -> dict[str, ModelStatus]:
    """Read the states of a worker, without those that this version does not know."""
    statuses = {}
    for name, status in json.loads(report).items():
        with suppress(ValidationError):
            statuses[name] = ModelStatus.model_validate(status)
    return statuses
