"""Model cards: what a worker announces that it serves, and what the front end resolves requests against.

A room of its own because it is the one thing that flows from worker to front end apart from job records.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from redis import Redis
from rq.utils import as_text

from app.contract.conditions import ControlType, LoraName
from app.contract.spec import Scheduler, Task

CARDS = "i2i:models"  # hash: model name -> card of whoever announced it last; outlives its workers
LIVE = "i2i:workers:{worker}"  # string with a time to live: the names that this worker serves, newline-separated
PACE = "i2i:pace:{worker}"  # string with a time to live: work per second, and work in hand
WORKERS = "i2i:workers"  # set of worker names that have announced themselves


@dataclass(frozen=True)
class WorkerPace:
    """What a worker says of its work, in units of JobSpec.cost."""

    per_second: float | None  # recently; None as long as it does not know
    left: float  # of the jobs that it has taken


class ModelCard(BaseModel):
    """What a model is and what it can do."""

    model_config = ConfigDict(frozen=True)

    name: str
    family: str
    native_size: int  # pixels along a side of the square that the model was trained on
    size_multiple: int  # width and height must be multiples of this
    min_size: int
    max_size: int
    sizes: tuple[tuple[int, int], ...]  # (width, height) buckets that pictures without a size go to
    schedulers: tuple[Scheduler, ...]
    default_scheduler: Scheduler
    default_steps: int = 30
    default_guidance_scale: float = 7.5
    tasks: tuple[Task, ...] = (Task.IMG2IMG,)
    controls: tuple[ControlType, ...] = ()  # types that it has a ControlNet for
    preprocessors: tuple[ControlType, ...] = ()  # types of maps that it can make from a picture
    image_prompts: bool = False
    loras: tuple[LoraName, ...] = ()
    upscales: tuple[int, ...] = ()  # times that the upscale task can make a picture wider and higher
    negative_prompt: bool = True
    guidance: bool = True  # classifier-free guidance: a scale above 1 can be asked for
    prompt_weighting: bool = False  # `(text:1.3)` in prompts can be asked for
    image_guidance: bool = True  # of the edit task: `image_guidance_scale` can be asked for
    dtype: str = "float32"
    revision: str | None = None


ASPECT_RATIOS = (1 / 1, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3, 9 / 16)


def size_buckets(native_size: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """(width, height) per common aspect ratio: about native_size**2 pixels, on a grid of a sixteenth of that side."""
    step = multiple * max(1, round(native_size / 16 / multiple))
    buckets = []
    for ratio in ASPECT_RATIOS:
        width = step * round(native_size * math.sqrt(ratio) / step)
        height = step * round(native_size / math.sqrt(ratio) / step)
        if (width, height) not in buckets:
            buckets.append((width, height))
    return tuple(buckets)


def nearest_bucket(sizes: Iterable[tuple[int, int]], width: int, height: int) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest to the picture's, by the logarithm of the ratio."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * height / width)))


def model_name(source: str) -> str:
    """The name that clients use for a model: a hub id as it is, a folder by its last part."""
    return Path(source).name if source.startswith((".", "/", "~")) else source


class ModelRegistry:
    """Which models are known, and which are served by a live worker."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def announce(self, worker: str, cards: Iterable[ModelCard], ttl_s: int) -> None:
        """Says that `worker` serves these models for the next ttl_s seconds. Call it again before they are over."""
        cards = list(cards)
        with self._redis.pipeline() as pipe:
            pipe.hset(CARDS, mapping={card.name: card.model_dump_json() for card in cards})
            pipe.set(LIVE.format(worker=worker), "\n".join(card.name for card in cards), ex=ttl_s)
            pipe.sadd(WORKERS, worker)
            pipe.execute()

    def say_pace(self, worker: str, pace: WorkerPace, ttl_s: int) -> None:
        """Says how fast `worker` works and how much it has in hand."""
        self._redis.set(PACE.format(worker=worker), f"{pace.per_second or ''} {pace.left}", ex=ttl_s)

    def paces(self, workers: Iterable[str]) -> list[WorkerPace]:
        """What those of the workers say who have said something lately."""
        said = self._redis.mget([PACE.format(worker=worker) for worker in workers])
        pairs = [str(as_text(text)).split(" ") for text in said if text is not None]
        return [WorkerPace(float(per_second) if per_second else None, float(left)) for per_second, left in pairs]

    def withdraw(self, worker: str) -> None:
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
