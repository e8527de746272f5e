"""Models that are added, changed and removed by request. Workers are reports in Redis."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.domain.api_key import Scope
from img2img.domain.model_status import ModelState, ModelStatus
from img2img.redis.audit import audit_entries
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_definitions import MAX_CHANGED, ModelDefinitions
from img2img.redis.model_reports import WorkerReport, WorkerReports
from tests.support.authenticated import authenticated_server, client_with, empty_keys
from tests.support.model_reports import WORKER, definitions, report
from tests.support.problems import assert_problem
from tests.support.servers import http_server

PHOTO = {"source": "org/photo", "steps": 20, "loras": {"ink": "org/ink"}}


def test_added_model_is_pending_until_a_worker_serves_it(http: httpx.Client, redis: Redis) -> None:
    response = http.put("/models/org/photo", json=PHOTO)
    assert (response.status_code, response.headers["location"]) == (202, "/models/org/photo")
    assert response.json()["state"] == "waiting"
    assert "up to 2 seconds" in response.json()["detail"]
    assert definitions(redis)["org/photo"].loras["ink"].source == "org/ink"

    report(redis, "demo", **{"org/photo": ModelStatus(state=ModelState.LOADING, percent=35)})
    [pending] = http.get("/models").json()["pending"]
    assert (pending["name"], pending["state"]) == ("org/photo", "loading")
    assert pending["detail"] == f"{WORKER}: 35 %"

    report(redis, "demo", "org/photo")
    model = http.get("/models/org/photo").json()
    assert (model["state"], model["detail"], model["card"]["name"]) == (
        "loaded",
        "1 worker has it in memory.",
        "org/photo",
    )
    assert http.get("/models").json()["pending"] == []
    assert [model["name"] for model in http.get("/models").json()["models"]] == ["demo", "org/photo"]


def test_repeated_change_changes_nothing(http: httpx.Client, redis: Redis) -> None:
    for path, body in (("/models/photo", PHOTO), ("/models/photo/loras/pen", {"source": "org/pen"})):
        assert [http.put(path, json=body).status_code for _ in range(3)] == [202, 200, 200]
    assert ModelDefinitions(redis).revision() == 2
    assert len(list(audit_entries(redis, 10))) == 2


def test_removed_model_is_rejected_by_requests_and_returns_by_reset(
    http: httpx.Client, redis: Redis, queue: JobQueue, image_bytes: bytes
) -> None:
    submit = {"files": {"image": image_bytes}, "data": {"model": "ddim-only"}}
    assert http.post("/img2img", **submit).status_code == 202
    response = http.delete("/models/ddim-only")
    assert (response.status_code, response.json()["state"]) == (202, "removed")
    assert response.json()["detail"] == "Requests for it are rejected; 1 of its jobs still wait."
    assert_problem(http.post("/img2img", **submit), 422, "invalid_parameter")
    assert_problem(http.get("/models/ddim-only"), 404, "not_found")
    assert_problem(http.delete("/models/ddim-only"), 404, "not_found")
    assert_problem(http.put("/models/ddim-only/loras/ink", json={"source": "a/b"}), 404, "not_found")
    assert "demo" in definitions(redis)
    assert queue.depth("ddim-only") == 1

    assert [http.post("/models/ddim-only/reset").status_code for _ in range(2)] == [202, 200]
    report(redis, "demo", "ddim-only")
    assert http.post("/img2img", **submit).status_code == 202


def test_model_of_the_file_can_be_removed_replaced_and_reset(http: httpx.Client, redis: Redis) -> None:
    http.delete("/models/demo")
    assert definitions(redis) == {}
    http.put("/models/demo", json=PHOTO)
    assert definitions(redis)["demo"].source == "org/photo"
    http.post("/models/demo/reset")
    assert definitions(redis)["demo"].source == "./demo"


def test_loras_are_added_to_and_removed_from_any_model(http: httpx.Client, redis: Redis) -> None:
    assert http.put("/models/demo/loras/pen", json={"source": "org/pen", "weight_name": "pen.safetensors"}).is_success
    assert definitions(redis)["demo"].loras["pen"].weight_name == "pen.safetensors"
    assert http.delete("/models/demo/loras/pen").status_code == 202
    assert definitions(redis)["demo"].loras == {}
    assert_problem(http.delete("/models/demo/loras/pen"), 404, "not_found")
    assert_problem(http.put("/models/unknown/loras/pen", json={"source": "a/b"}), 404, "not_found")
    http.put("/models/org/photo", json=PHOTO)
    assert http.delete("/models/org/photo/loras/ink").status_code == 202
    assert definitions(redis)["org/photo"].loras == {}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "source"),
        ({"source": "org/photo", "lora": {}}, "lora"),
        ({"source": "org/photo", "steps": 0}, "steps"),
        ({"source": "org/photo", "name": "other"}, "name"),
        ({"source": "https://example.org/photo"}, "source"),
        ({"source": "~/photo"}, "source"),
        ({"source": "./photo.ckpt"}, "source"),
        ({"source": "a/../../photo"}, "source"),
        ({"source": "org/pho\nto"}, "source"),
        ({"source": "org/photo", "revision": "../../main"}, "revision"),
        ({"source": "org/photo", "variant": "/etc/passwd"}, "variant"),
        ({"source": "org/photo", "edit": {"source": "./ink", "weight_name": "../ink"}}, "edit.weight_name"),
        ({"source": "org/photo", "vae": {"source": "org/vae", "subfolder": "/etc"}}, "vae.subfolder"),
        ({"source": "org/photo", "offload_folder": "/srv/models"}, "offload_folder"),
        ({"source": "org/photo", "controlnets": {"canny": "net.bin"}}, "controlnets.canny"),
    ],
)  # fmt: skip
def test_invalid_definition_is_rejected_at_its_field(http: httpx.Client, redis: Redis, body: Any, field: str) -> None:
    [error] = assert_problem(http.put("/models/photo", json=body), 422, "invalid_parameter")["errors"]
    assert error["field"] == field
    assert ModelDefinitions(redis).revision() == 0


def test_body_and_name_are_checked(http: httpx.Client) -> None:
    assert http.put("/models/photo", content=b"{", headers={"Content-Type": "application/json"}).status_code == 422
    assert http.put("/models/photo", data={"source": "org/photo"}).status_code == 415
    for name in (".hidden", "a b", "x" * 201):
        assert http.put(f"/models/{name}", json=PHOTO).status_code == 422
    assert http.put("/models/photo/loras/a:b", json={"source": "a/b"}).status_code == 422


def test_paths_are_limited_to_the_configured_folders(settings: ApiSettings, http: httpx.Client, tmp_path: Path) -> None:
    changed = settings.model_copy(update={"model_folders": f"{tmp_path}/models,/srv/loras", "port": free_port()})
    with http_server(changed) as url, httpx.Client(base_url=url, timeout=10) as client:
        for source in ("./photo", f"{tmp_path}/models/photo", "/srv/loras/../loras/photo", "org/photo"):
            assert client.put("/models/photo", json={"source": source}).is_success, source
        for source in ("../photo", f"{tmp_path}/photo", "/srv/loras/../photo", "/etc/passwd", f"{tmp_path}/models2/x"):
            response = client.put("/models/photo", json={"source": source})
            [error] = assert_problem(response, 422, "invalid_parameter")["errors"]
            assert (error["field"], "IMG2IMG_MODEL_FOLDERS" in error["message"]) == ("source", True)
        assert client.put("/models/photo", json={"source": "a/b", "lora_folder": "/etc"}).status_code == 422
        assert client.put("/models/photo/loras/pen", json={"source": "/etc/pen.safetensors"}).status_code == 422


def test_number_of_changes_is_limited(http: httpx.Client, redis: Redis) -> None:
    redis.hset("i2i:models:changes", mapping={f"m{i}": "{}" for i in range(MAX_CHANGED)})
    assert_problem(http.put("/models/photo", json=PHOTO), 429, "too_many_models")
    assert http.put("/models/m1", json=PHOTO).status_code == 202


@contextmanager
def two_keys(settings: ApiSettings, redis: Redis) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients with an API key without and with the scope `admin`."""
    keys = empty_keys(redis)
    with (
        authenticated_server(settings) as url,
        client_with(url, keys) as user,
        client_with(url, keys, Scope.ADMIN) as admin,
    ):
        yield user, admin


def test_only_admin_keys_change_models_and_see_sources_and_reasons(settings: ApiSettings, redis: Redis) -> None:
    with two_keys(settings, redis) as (user, admin):
        for method, path in (
            ("PUT", "/models/photo"), ("DELETE", "/models/demo"), ("PUT", "/models/demo/loras/ink"),
            ("DELETE", "/models/demo/loras/ink"), ("POST", "/models/demo/reset"),
        ):  # fmt: skip
            problem = assert_problem(user.request(method, path, json=PHOTO), 403, "insufficient_scope")
            assert "`admin`" in problem["detail"]
        assert ModelDefinitions(redis).revision() == 0
        assert admin.put("/models/photo", json={"source": "/private/photo"}).status_code == 202
        report(redis, "demo", photo=ModelStatus(state=ModelState.FAILED, error="/private/photo does not exist"))
        answers = [user.get(path).text for path in ("/models", "/models/photo")]
        assert not any("private" in answer for answer in answers)
        assert "photo does not exist" in answers[1]
        model = admin.get("/models/photo").json()
        assert (model["state"], model["detail"]) == ("failed", f"{WORKER}: /private/photo does not exist")
        assert model["change"]["model"]["source"] == "/private/photo"
        [entry] = [entry for entry in audit_entries(redis, 10) if entry.event == "model.changed"]
        assert entry.actor.startswith("key ")
        assert entry.details == {"model": "photo", "action": "put", "source": "/private/photo"}


def test_without_keys_models_change_only_on_loopback(settings: ApiSettings, http: httpx.Client) -> None:
    public = settings.model_copy(update={"insecure": True, "published_host": "192.0.2.1", "port": free_port()})
    with http_server(public) as url, httpx.Client(base_url=url, timeout=10) as client:
        problem = assert_problem(client.put("/models/photo", json=PHOTO), 403, "insufficient_scope")
        assert "loopback" in problem["detail"]
        assert client.get("/models").status_code == 200
    assert http.put("/models/photo", json=PHOTO).status_code == 202


def test_web_page_of_an_allowed_origin_changes_no_models_without_a_key(
    settings: ApiSettings, http: httpx.Client
) -> None:
    assert http.get("/models").status_code == 200
    changed = settings.model_copy(update={"cors_origins": "*", "port": free_port()})
    with http_server(changed) as url, httpx.Client(base_url=url, timeout=10) as client:
        page = {"Origin": "https://studio.example"}
        assert client.get("/models", headers=page).status_code == 200
        assert_problem(client.put("/models/photo", json=PHOTO, headers=page), 403, "forbidden_origin")
        assert_problem(client.post("/models/demo/reset", headers=page), 403, "forbidden_origin")
        assert client.put("/models/photo", json=PHOTO, headers={"Origin": url}).status_code == 202


def test_worker_with_an_invalid_model_file_is_listed(http: httpx.Client, redis: Redis) -> None:
    error = "the model file models.toml: models.a.lora: unknown key"
    WorkerReports(redis).publish(WORKER, WorkerReport(file_error=error))
    assert http.get("/models").json()["notices"] == [f"{WORKER}: a change of the model file is ignored: {error}"]
    assert error in http.get("/readyz").json()["workers"]["detail"]


def test_lora_that_a_worker_left_out_is_listed_with_the_reason(http: httpx.Client, redis: Redis) -> None:
    report(redis, "demo")
    left_out = {"demo": {"ink": "/srv/ink.safetensors does not exist"}}
    WorkerReports(redis).publish(WORKER, WorkerReport(loras_left_out=left_out))
    notice = f"{WORKER}: the LoRA ink is left out of the model demo: {left_out['demo']['ink']}"
    assert http.get("/models").json()["notices"] == [notice]
    [worker] = http.get("/models/demo").json()["workers"]
    assert worker["loras_left_out"] == left_out["demo"]


def test_model_whose_loras_are_being_replaced_does_not_follow_the_change_yet(http: httpx.Client, redis: Redis) -> None:
    report(redis, demo=ModelStatus(state=ModelState.LOADED, changing=True))
    assert http.get("/models/demo").json()["state"] == "waiting"
