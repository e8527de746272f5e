"""Changes of models by request. Workers follow them without a restart."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError

from img2img.domain.model_change import ModelChange
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.errors import NotFound, TooManyRequests
from img2img.redis.audit import AuditEvent, audit_in
from img2img.redis.decode import decode
from img2img.redis.keys import MODEL_CARDS, MODEL_CHANGES, MODEL_REVISION

# Most models that requests can have changed at a time.
MAX_CHANGED = 1000

T = TypeVar("T")

log = logging.getLogger(__name__)


class TooManyModels(TooManyRequests):
    """Requests have changed as many models as they may; reset some of them."""

    code = "too_many_models"


@dataclass(frozen=True)
class Changes:
    """The changes of all models.

    Attributes:
        revision: Number of the latest change.
        by_model: The changes by name of the model.
    """

    revision: int
    by_model: dict[str, ModelChange]


class ModelDefinitions:
    """The changes of models by request: `put`, `remove` and so on make them, `read` returns all of them.

    Args:
        redis: The Redis server.
        actor: Who makes changes, for the audit log.
    """

    def __init__(self, redis: Redis, actor: str = "service") -> None:
        self._redis = redis
        self._actor = actor

    def revision(self) -> int:
        """Return the number of the latest change, 0 before the first."""
        return int(self._redis.get(MODEL_REVISION) or 0)

    def read(self) -> Changes:
        """Return all changes. One that a later version has written, with unknown keys, is left out."""
        with self._redis.pipeline() as pipe:
            pipe.get(MODEL_REVISION)
            pipe.hgetall(MODEL_CHANGES)
            revision, stored = pipe.execute()
        found = {decode(name): _parse(decode(name), change) for name, change in stored.items()}
        return Changes(int(revision or 0), {name: change for name, change in found.items() if change is not None})

    def find(self, name: str) -> ModelChange:
        """Return the change of a model, which is empty for one that no request has changed."""
        stored = self._redis.hget(MODEL_CHANGES, name)
        return (_parse(name, stored) if stored is not None else None) or ModelChange()

    def put(self, name: str, model: ModelConfig) -> bool:
        """Add or replace a model. Returns whether that changes anything.

        Raises:
            TooManyModels: No further model can be changed.
        """
        change = ModelChange(model=model.model_copy(update={"name": name}))
        return self._set(name, lambda _old: change, "put", source=model.source)

    def remove(self, name: str) -> bool:
        """Remove a model from all workers. Returns whether that changes anything. Raises TooManyModels.

        Its definition is kept for the jobs that wait for it.
        """
        return self._set(name, lambda old: old.model_copy(update={"removed": True}), "removed")

    def reset(self, name: str) -> bool:
        """Forget the change of a model, so that the model files decide. Returns whether that changes anything."""
        return self._set(name, lambda _old: ModelChange(), "reset")

    def put_lora(self, name: str, lora: str, source: ComponentSource) -> bool:
        """Add or replace a LoRA of a model. Returns whether that changes anything.

        Raises:
            NotFound: The model was removed.
            TooManyModels: No further model can be changed.
        """
        changed = self._lora_change(name, lora, source)
        return self._set(name, changed, "lora put", lora=lora, source=source.source)

    def remove_lora(self, name: str, lora: str) -> bool:
        """Remove a LoRA of a model. Returns whether that changes anything. Raises NotFound or TooManyModels."""
        return self._set(name, self._lora_change(name, lora, None), "lora removed", lora=lora)

    def _lora_change(
        self, name: str, lora: str, source: ComponentSource | None
    ) -> Callable[[ModelChange], ModelChange]:
        def change(old: ModelChange) -> ModelChange:
            if old.removed:
                raise NotFound(f"There is no model {name}: it was removed.")
            return old.with_lora(lora, source)

        return change

    def _set(self, name: str, change: Callable[[ModelChange], ModelChange], action: str, **details: str) -> bool:
        """Change a model in one transaction, again if another request changes one at the same time."""
        with self._redis.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(MODEL_CHANGES, MODEL_REVISION)  # type: ignore[no-untyped-call]
                    return self._try(pipe, name, change, action, details)
                except WatchError:
                    continue

    def _try(
        self,
        pipe: Pipeline,
        name: str,
        change: Callable[[ModelChange], ModelChange],
        action: str,
        details: dict[str, str],
    ) -> bool:
        stored = pipe.hget(MODEL_CHANGES, name)
        old = (_parse(name, stored) if stored is not None else None) or ModelChange()
        new = change(old)
        if new.has_same_effect(old):
            return False
        if stored is None and int(pipe.hlen(MODEL_CHANGES)) >= MAX_CHANGED:
            raise TooManyModels
        revision = int(pipe.get(MODEL_REVISION) or 0) + 1
        pipe.multi()
        if new.is_empty:
            pipe.hdel(MODEL_CHANGES, name)
        else:
            pipe.hset(
                MODEL_CHANGES,
                name,
                new.model_copy(update={"revision": revision}).model_dump_json(exclude_defaults=True),
            )
        if new.removed:
            # Requests for the model are rejected from now on.
            pipe.hdel(MODEL_CARDS, name)
        pipe.set(MODEL_REVISION, revision)
        audit_in(pipe, AuditEvent.MODEL_CHANGED, actor=self._actor, model=name, action=action, **details)
        pipe.execute()
        return True


def _parse(name: str, stored: bytes | str) -> ModelChange | None:
    try:
        return ModelChange.model_validate_json(stored)
    except ValidationError:
        log.warning("the change of the model %s by request was written by a later version, and is left out", name)
        return None
