"""The states of models in `GET /models` and `/readyz`."""

import json
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.domain.api_key import Scope
from img2img.domain.model_status import ModelState, ModelStatus
from img2img.redis import keys
from img2img.redis.model_registry import ModelRegistry
from tests.support.authenticated import authenticated_server, client_with, empty_keys
from tests.support.model_cards import CARD, DDIM_ONLY

LOADED = ModelStatus(state=ModelState.LOADED, disk_bytes=6_900_000_000, memory_bytes=6_800_000_000)
LOADING = ModelStatus(state=ModelState.LOADING, percent=43, disk_bytes=6_900_000_000)
BROKEN = ModelStatus(state=ModelState.FAILED, error="cannot load model 'photo': /srv/models/photo has no vae")

WITHOUT_PATHS = "cannot load model 'photo': photo has no vae"


def models(http: httpx.Client) -> dict[str, Any]:
    return {model["name"]: model for model in http.get("/models").json()["models"]}


def test_state_of_each_worker(http: httpx.Client, redis: Redis) -> None:
    registry = ModelRegistry(redis)
    registry.unregister("test-worker")
    statuses = {CARD.name: LOADING, DDIM_ONLY.name: ModelStatus(state=ModelState.UNLOADED)}
    registry.register("gpu-1", [CARD, DDIM_ONLY], 60, statuses)
    assert {name: model["state"] for name, model in models(http).items()} == {
        "demo": "loading",
        "ddim-only": "unloaded",
    }
    assert models(http)["demo"]["statuses"] == [
        {
            "worker": "gpu-1",
            "state": "loading",
            "percent": 43,
            "disk_bytes": 6_900_000_000,
            "memory_bytes": None,
            "batching": {},
            "error": None,
        }
    ]
    registry.register("gpu-2", [CARD], 60, {CARD.name: LOADED})
    registry.register("gpu-3", [CARD], 60, {CARD.name: BROKEN})
    demo = models(http)["demo"]
    assert demo["state"] == "loaded"
    assert [(status["worker"], status["state"]) for status in demo["statuses"]] == [
        ("gpu-1", "loading"),
        ("gpu-2", "loaded"),
        ("gpu-3", "failed"),
    ]
    ready = http.get("/readyz").json()
    assert ready["ready"]
    assert [(model["name"], model["state"]) for model in ready["models"]] == [
        ("ddim-only", "unloaded"),
        ("demo", "loaded"),
    ]


def test_service_whose_default_model_cannot_be_loaded_is_not_ready(http: httpx.Client, redis: Redis) -> None:
    registry = ModelRegistry(redis)
    registry.register("test-worker", [CARD, DDIM_ONLY], 60, {CARD.name: BROKEN, DDIM_ONLY.name: LOADED})
    response = http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["workers"]["detail"] == "1 live; the default model demo could not be loaded"
    assert response.json()["models"][1]["statuses"][0]["error"] == BROKEN.error
    registry.register("other", [CARD], 60, {CARD.name: ModelStatus(state=ModelState.UNLOADED)})
    assert http.get("/readyz").status_code in (200, 503)  # at most a second old
    registry.unregister("other")


def test_model_without_a_card_is_reported_and_not_offered(http: httpx.Client, redis: Redis) -> None:
    ModelRegistry(redis).register("test-worker", [CARD], 60, {CARD.name: LOADED, "photo": BROKEN})
    assert models(http).keys() == {"demo"}
    found = {model["name"]: model for model in http.get("/readyz").json()["models"]}
    assert found["photo"]["state"] == "failed"


def test_paths_are_for_administrators(settings: ApiSettings, redis: Redis) -> None:
    keys = empty_keys(redis)
    ModelRegistry(redis).register("test-worker", [CARD], 60, {CARD.name: BROKEN})
    with authenticated_server(settings) as url:
        for scope, error in ((Scope.ADMIN, BROKEN.error), (Scope.READ, WITHOUT_PATHS)):
            with client_with(url, keys, scope) as client:
                assert models(client)["demo"]["statuses"][0]["error"] == error
        ready = httpx.get(f"{url}/readyz").json()
        assert ready["models"][0]["statuses"][0]["error"] == "the reason is in the log of the worker"


@pytest.mark.parametrize("change", ["scheduler", "default"])
def test_card_of_another_version_does_not_hide_the_others(http: httpx.Client, redis: Redis, change: str) -> None:
    registry = ModelRegistry(redis)
    card = CARD.model_copy(update={"name": "newer"})
    registry.register("newer-worker", [card], 60)
    content = card.model_dump(mode="json")
    if change == "scheduler":
        content["schedulers"].append("of-the-next-release")
        content["parameters"] = {"eta": ["img2img", "of-the-next-release"]}
        content["unknown"] = 1
    else:
        content["default_scheduler"] = "of-the-next-release"
    redis.hset(keys.MODEL_CARDS, "newer", json.dumps(content))
    assert models(http).keys() == ({"ddim-only", "demo", "newer"} if change == "scheduler" else {"ddim-only", "demo"})
    if change == "scheduler":
        found = registry.find("newer")
        assert found is not None
        assert found.schedulers == card.schedulers
        assert found.parameters == {"eta": ("img2img",)}
    redis.hdel(keys.MODEL_CARDS, "newer")
    registry.unregister("newer-worker")


def test_worker_of_an_earlier_version_has_loaded_its_models(http: httpx.Client, redis: Redis) -> None:
    redis.delete(keys.WORKER_MODEL_STATES.format(worker="test-worker"))
    assert models(http)["demo"]["state"] == "loaded"
    redis.set(keys.WORKER_MODEL_STATES.format(worker="test-worker"), '{"demo": {"state": "of-the-next-release"}}')
    assert http.get("/models").json()["models"] == []
