"""Replicate's API and Hugging Face's, over real HTTP, as their clients do not use it: see tests/e2e for those."""

import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
import pytest
from redis import Redis

from img2img.app.schemas.predictions import version_of
from img2img.domain.job import JobFailure, JobStatus
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem

IMAGE = encoded(gradient(160, 120))
TEXT = b64encode(IMAGE).decode()
ABLE = CARD.model_copy(update={"tasks": tuple(Task), "aliases": ("black-forest-labs/flux-kontext-pro", "gpt-image-1")})
NAMED = CARD.model_copy(update={"name": "org/photo"})
CREATE = "/replicate/v1/models/img2img/demo/predictions"


@pytest.fixture
def http(http: httpx.Client, redis: Redis) -> httpx.Client:
    ModelRegistry(redis).register("test-worker", [ABLE, NAMED], ttl_s=60)
    return http


def create(http: httpx.Client, path: str = CREATE, **body: Any) -> dict[str, Any]:
    response = http.post(path, json={"input": {"image": TEXT}, **body})
    assert response.status_code == 201, response.text
    prediction: dict[str, Any] = response.json()
    return prediction


class TestPredictions:
    def test_prediction_is_a_job(self, http: httpx.Client, finish: Callable[[str], bytes]) -> None:
        created = create(http, input={"image": TEXT, "prompt": "a house", "prompt_strength": 0.5, "num_outputs": 2})
        assert (created["status"], created["model"], created["output"]) == ("starting", "img2img/demo", None)
        job = http.get(f"/jobs/{created['id']}").json()["request"]
        assert (job["prompt"], job["strength"], job["num_images"]) == ("a house", 0.5, 2)
        png = finish(created["id"])
        done = http.get(created["urls"]["get"]).json()
        assert (done["status"], done["logs"].split("|")[0], done["error"]) == ("succeeded", "100%", None)
        kind, _, data = done["output"][0].partition(",")
        assert (kind, b64decode(data), len(done["output"])) == ("data:image/png;base64", png, 2)
        assert done["metrics"]["total_time"] >= done["metrics"]["predict_time"]
        assert not [key for key, value in done["input"].items() if value is None]

    def test_wait_that_runs_out_answers_starting(self, http: httpx.Client, queue: JobQueue) -> None:
        """Clients take any other status for the end."""

        def start() -> None:
            while not (ids := queue.job_store.active_ids()):
                pass
            queue.job_store.start(ids[0], execution="e", worker="w")

        worker = threading.Thread(target=start)
        worker.start()
        response = http.post(CREATE, json={"input": {"image": TEXT}}, headers={"Prefer": "wait=1"})
        worker.join()
        assert response.json()["status"] == "starting"
        assert http.get(response.json()["urls"]["get"]).json()["status"] == "processing"

    @pytest.mark.usefixtures("fake_worker")
    @pytest.mark.parametrize("prefer", ["wait", "wait=30"])
    def test_wait_returns_the_output(self, http: httpx.Client, prefer: str) -> None:
        response = http.post(CREATE, json={"input": {"image": TEXT}}, headers={"Prefer": prefer}, timeout=60)
        assert (response.status_code, response.json()["status"]) == (201, "succeeded")
        assert response.json()["output"][0].startswith("data:image/png;base64,")

    def test_cancel_and_list(self, http: httpx.Client) -> None:
        first, second = create(http), create(http)
        assert http.post(first["urls"]["cancel"]).json()["status"] == "canceled"
        page = http.get("/replicate/v1/predictions").json()
        assert [one["id"] for one in page["results"]] == [second["id"], first["id"]]
        assert page["next"] is None

    def test_failure_has_its_sentence(self, http: httpx.Client, queue: JobQueue) -> None:
        created = create(http)
        queue.job_store.start(created["id"], execution="e", worker="w")
        queue.job_store.fail(created["id"], JobFailure(code="invalid_pixels", message="No numbers."), execution="e")
        failed = http.get(created["urls"]["get"]).json()
        assert (failed["status"], failed["error"], failed["output"]) == ("failed", "No numbers.", None)

    @pytest.mark.parametrize(
        "version",
        ["demo", "img2img/demo", version_of("demo"), f"img2img/demo:{version_of('demo')}", "gpt-image-1"],
    )
    def test_model_is_found_by_its_version(self, http: httpx.Client, version: str) -> None:
        assert create(http, "/replicate/v1/predictions", version=version)["model"] == "img2img/demo"

    def test_names_with_owner_and_aliases_are_found(self, http: httpx.Client) -> None:
        assert create(http, "/replicate/v1/models/org/photo/predictions")["model"] == "org/photo"
        alias = "/replicate/v1/models/black-forest-labs/flux-kontext-pro/predictions"
        assert create(http, alias)["model"] == "img2img/demo"

    @pytest.mark.parametrize(
        ("body", "field", "message"),
        [
            ({"input": {}}, "image", "Field required"),
            ({"input": {"image": TEXT, "prompt_strength": 2}}, "input.prompt_strength", "less than or equal to 1"),
            ({"input": {"image": TEXT, "strength": 2}}, "input.strength", "less than or equal to 1"),
            ({"input": {"image": TEXT, "width": 100}}, "input.width", "the nearest is 96"),
            ({"input": {"image": TEXT, "num_outputs": 2, "num_images": 2}}, "input.num_images", "num_outputs"),
            ({"input": {"image": TEXT, "model": "demo"}}, "input.model", "version"),
            ({"input": {"image": TEXT, "output_format": "webp"}}, "input.output_format", "Unknown field"),
            ({"input": {"image": "https://example.com/a.png"}}, "input.image", "POST /images"),
            ({"input": {"image": "http://other/replicate/v1/files/" + "0" * 64}}, "input.image", "POST /images"),
            ({"input": {"image": TEXT, "prompt": 7}}, "input.prompt", "string"),
            ({"input": {"image": TEXT}, "version": "demo"}, "version", "given by the path"),
            ({"input": {"image": TEXT}, "webhook": "https://example.com"}, "webhook", "IMG2IMG_WEBHOOK_SECRET"),
            (
                {"input": {"image": TEXT}, "webhook": "https://example.com", "webhook_events_filter": ["end"]},
                "webhook_events_filter.0",
                "'completed'",
            ),
            ({"input": {"image": TEXT}, "webhook_completed": "no url"}, "webhook_completed", "valid URL"),
            ({"input": {"image": TEXT}, "webhook": "no url"}, "webhook", "valid URL"),
            ({"input": []}, "input", "an object"),
            ({}, "input", "required"),
            ({"input": {"image": TEXT}, "colour": 1}, "colour", "Unknown field"),
        ],
    )
    def test_invalid_request_is_refused_by_name(
        self, http: httpx.Client, body: dict[str, Any], field: str, message: str
    ) -> None:
        problem = assert_problem(http.post(CREATE, json=body), 422)
        [error] = problem["errors"]
        assert error["field"].endswith(field)
        assert message in error["message"]

    @pytest.mark.parametrize(
        "body",
        [
            {"webhook": "", "webhook_completed": "", "webhook_events_filter": []},
            {"input": {"image": TEXT, "mask": "", "seed": "", "prompt": "", "scheduler": None}},
        ],
    )
    def test_what_asks_for_nothing_is_accepted(self, http: httpx.Client, body: dict[str, Any]) -> None:
        create(http, **body)

    def test_time_after_which_it_is_cancelled(self, http: httpx.Client) -> None:
        def post(cancel_after: str, **fields: Any) -> httpx.Response:
            headers = {"Cancel-After": cancel_after}
            return http.post(CREATE, json={"input": {"image": TEXT, **fields}}, headers=headers)

        job = http.get(f"/jobs/{post('1h1m30s').json()['id']}").json()
        created, deadline = (datetime.fromisoformat(job[name]) for name in ("created_at", "deadline_at"))
        assert (deadline - created).total_seconds() == pytest.approx(3690, abs=1)
        assert post("").status_code == 201
        for wrong in ("soon", "0s", "-5s", "1e9"):
            [error] = assert_problem(post(wrong), 422)["errors"]
            assert error["field"] == "Cancel-After"
        assert_problem(post("90", deadline_s=5), 422)

    def test_version_belongs_to_the_named_model(self, http: httpx.Client) -> None:
        body = {"version": f"org/photo:{version_of('demo')}", "input": {"image": TEXT}}
        assert (
            "There is no such version"
            in assert_problem(http.post("/replicate/v1/predictions", json=body), 422)["detail"]
        )

    def test_unknown_models_are_named(self, http: httpx.Client) -> None:
        body = {"input": {"image": TEXT}}
        unknown = http.post("/replicate/v1/models/org/none/predictions", json=body)
        assert "demo" in assert_problem(unknown, 404)["detail"]
        for version in ("none", "0" * 64, "img2img/demo:" + "0" * 64):
            response = http.post("/replicate/v1/predictions", json=body | {"version": version})
            assert "demo" in assert_problem(response, 422)["detail"]
        assert_problem(http.post("/replicate/v1/predictions", json=body), 422)

    def test_not_supported_endpoints_name_those_that_are(self, http: httpx.Client) -> None:
        for path in ("account", "trainings", "deployments/a/b/predictions", "collections"):
            assert "/replicate/v1/predictions" in assert_problem(http.get(f"/replicate/v1/{path}"), 404)["detail"]


class TestFiles:
    def test_file_is_an_input(self, http: httpx.Client) -> None:
        created = http.post("/replicate/v1/files", files={"content": ("a.png", IMAGE)}).json()
        assert (created["size"], created["content_type"], created["checksums"]["sha256"]) == (
            len(IMAGE),
            "image/png",
            created["id"],
        )
        assert created["created_at"] < created["expires_at"]
        assert http.get(created["urls"]["get"]).json() == created
        prediction = create(http, input={"image": created["urls"]["get"]})
        assert http.get(f"/jobs/{prediction['id']}").json()["status"] == "queued"
        assert http.delete(created["urls"]["get"]).status_code == 204
        assert_problem(http.get(created["urls"]["get"]), 404)

    def test_files_are_listed(self, http: httpx.Client) -> None:
        assert http.get("/replicate/v1/files").json() == {"previous": None, "next": None, "results": []}
        images = [encoded(gradient(32, 32)), encoded(gradient(32, 32), "JPEG")]
        created = [http.post("/replicate/v1/files", files={"content": image}).json() for image in images]
        listed = http.get("/replicate/v1/files").json()["results"]
        assert {file["id"]: file for file in listed} == {file["id"]: file for file in created}
        assert {file["content_type"] for file in listed} == {"image/png", "image/jpeg"}
        http.delete(created[0]["urls"]["get"])
        assert [file["id"] for file in http.get("/replicate/v1/files").json()["results"]] == [created[1]["id"]]
        assert_problem(http.get("/replicate/v1/files?cursor=-1"), 422)

    def test_output_is_an_input(self, http: httpx.Client, finish: Callable[[str], bytes]) -> None:
        created = create(http)
        finish(created["id"])
        [listed] = http.get("/replicate/v1/predictions").json()["results"]
        assert listed["output"] == [f"{str(http.base_url).rstrip('/')}/jobs/{created['id']}/images/0"]
        controls = [{"type": "canny", "image": listed["output"][0], "preprocess": False}]
        refused = http.post(CREATE, json={"input": {"image": listed["output"][0], "controls": controls}})
        assert assert_problem(refused, 422)["errors"][0]["field"].startswith("input.controls")
        create(http, input={"image": listed["output"][0]})

    def test_invalid_files_are_refused(self, http: httpx.Client) -> None:
        assert_problem(http.post("/replicate/v1/files", files={"content": b"no image"}), 415)
        assert_problem(http.post("/replicate/v1/files", files={"other": IMAGE}), 422)
        assert_problem(http.post("/replicate/v1/files", content=IMAGE, headers={"Content-Type": "image/png"}), 415)
        assert_problem(http.get("/replicate/v1/files", params={"cursor": 10**30}), 422)


class TestModels:
    def test_models_and_versions(self, http: httpx.Client) -> None:
        listed = {one["name"]: one for one in http.get("/replicate/v1/models").json()["results"]}
        assert listed["demo"]["owner"] == "img2img"
        assert http.get("/replicate/v1/models/org/photo").json() == listed["photo"]
        [version] = http.get("/replicate/v1/models/org/photo/versions").json()["results"]
        assert version == listed["photo"]["latest_version"]
        assert http.get(f"/replicate/v1/models/org/photo/versions/{version['id']}").json() == version
        assert "strength" in version["openapi_schema"]["components"]["schemas"]["Input"]["properties"]
        assert_problem(http.get("/replicate/v1/models/org/photo/versions/1"), 404)


class TestHuggingFace:
    @pytest.fixture
    def transform(self, http: httpx.Client, queue: JobQueue, fake_worker: None) -> Callable[..., JobSpec]:
        def post(path: str = "/hf/demo", **request: Any) -> JobSpec:
            response = http.post(path, timeout=60, **request)
            assert (response.status_code, response.headers["content-type"]) == (200, "image/png"), response.text
            record = queue.job_store.get(http.get("/jobs?limit=1").json()["jobs"][0]["id"])
            assert record is not None
            assert record.status is JobStatus.SUCCEEDED
            return record.spec

        return post

    @pytest.mark.parametrize("path", ["/hf", "/hf/demo", "/hf/demo/", "/hf/gpt-image-1"])
    def test_bytes_are_an_image(self, transform: Callable[..., JobSpec], path: str) -> None:
        assert transform(path, content=IMAGE, headers={"Content-Type": "image/png"}).model == "demo"

    def test_parameters_are_fields(self, transform: Callable[..., JobSpec], http: httpx.Client) -> None:
        parameters = {"prompt": "a house", "strength": 0.5, "target_size": {"width": 96, "height": 128}, "seed": None}
        spec = transform(json={"inputs": TEXT, "parameters": parameters, "options": {"wait_for_model": True}})
        assert (spec.task, spec.width, spec.height) == (Task.IMG2IMG, 96, 128)
        assert transform(json={"inputs": TEXT, "parameters": {"prompt": "make it night"}}).task is Task.EDIT
        stored = http.post("/images", files={"image": IMAGE}).json()["sha256"]
        assert transform(json={"inputs": stored, "parameters": {"seed": 1}}).task is Task.IMG2IMG
        nothing = {"guidance_scale": 3, "scheduler": "", "model": "", "negative_prompt": ""}
        assert transform(json={"inputs": TEXT, "parameters": nothing}).task is Task.IMG2IMG

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"parameters": {}}, "inputs: Field required"),
            ({"inputs": "https://example.com/a.png"}, "inputs: "),
            ({"inputs": TEXT, "options": {"cache": True}}, "options.cache: Unknown field"),
            ({"inputs": TEXT, "parameters": {"num_inference_steps": True}}, "steps: Input should not be true or false"),
            ({"inputs": TEXT, "parameters": {"num_images": 2}}, "one image"),
            ({"inputs": TEXT, "parameters": {"model": "demo"}}, "given by the URL"),
            ({"inputs": TEXT, "parameters": {"target_size": {"width": 100, "height": 96}}}, "target_size: "),
            ({"inputs": TEXT, "parameters": {"target_size": {"width": 96, "height": 96}, "width": 96}}, "combined"),
            ({"inputs": TEXT, "parameters": {"guidance": 3}}, "guidance: Unknown field; known are inputs, prompt"),
        ],
    )
    def test_invalid_request_is_refused(self, http: httpx.Client, body: dict[str, Any], message: str) -> None:
        response = http.post("/hf/demo", json=body)
        assert response.status_code == 422
        assert message in response.json()["error"]

    def test_unknown_model_and_bytes_that_are_no_image(self, http: httpx.Client) -> None:
        assert http.post("/hf/none", content=IMAGE).json()["error"].startswith("model: Input should be one of")
        assert "Forms are not read" in http.post("/hf/demo", files={"image": IMAGE}).json()["error"]
        assert "strength: Unknown query" in http.post("/hf/demo?strength=1", content=IMAGE).json()["error"]
        refused = http.post("/hf/demo", content=b"no image")
        assert (refused.status_code, "PNG" in refused.json()["error"]) == (415, True)
        assert "POST /hf/MODEL" in http.get("/hf/demo").json()["error"]


class TestAliases:
    def test_requests_and_lists_know_them(self, http: httpx.Client) -> None:
        job = http.post("/img2img", json={"image": TEXT, "model": "gpt-image-1"}).json()
        assert job["request"]["model"] == "demo"
        listed = {one["id"]: one.get("root") for one in http.get("/v1/models").json()["data"]}
        assert (listed["demo"], listed["gpt-image-1"]) == (None, "demo")
        assert http.get("/v1/models/gpt-image-1").json()["root"] == "demo"

    def test_name_takes_precedence_and_served_models_come_first(self, redis: Redis) -> None:
        redis.flushall()
        registry = ModelRegistry(redis)
        old = CARD.model_copy(update={"name": "a-old", "aliases": ("x", "demo")})
        registry.register("gone", [old], ttl_s=60)
        registry.unregister("gone")
        registry.register("w", [CARD.model_copy(update={"aliases": ("x",)})], ttl_s=60)
        assert [getattr(registry.find(name), "name", None) for name in ("x", "demo", "y")] == ["demo", "demo", None]
