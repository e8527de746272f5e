"""Every route of the application with ids of another owner: no data is shown or changed."""

import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from redis import Redis

from img2img.app.settings import ApiSettings
from img2img.blobs import ObjectStore
from img2img.domain.api_key import Scope
from img2img.domain.blob_keys import result_key, upload_key
from img2img.domain.conditioning import ControlType
from img2img.domain.job import JobStatus
from img2img.domain.masks import MaskKind
from img2img.domain.parameters import Task
from img2img.domain.presigned_upload import PresignedUpload
from img2img.redis.api_keys import ApiKeys
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.previews import Preview, Previews
from tests.support.authenticated import authenticated_server, client_with, every_route, path_of
from tests.support.finished_jobs import succeed
from tests.support.images import encoded, gradient
from tests.support.model_cards import CARD

# A model that accepts image references in every field.
ABLE = CARD.model_copy(
    update={
        "tasks": (Task.IMG2IMG, Task.INPAINT, Task.CONTROL),
        "controls": (ControlType.CANNY,),
        "preprocessors": (ControlType.CANNY,),
        "masks": (MaskKind.TEXT,),
        "image_prompts": True,
        "adapter_tasks": (Task.IMG2IMG, Task.INPAINT),
    }
)
# A model of its own, because a prompt of the compatible APIs is an instruction to a model with the task `edit`.
EDITOR = CARD.model_copy(update={"name": "editor", "tasks": (Task.EDIT,), "max_images": 4})
IMAGE = encoded(gradient(160, 120))
OWN = b64encode(encoded(gradient(160, 120, blue=9))).decode()  # an image of the other owner
# The end of the id of an upload of this image.
UPLOADED = f"{sha256(IMAGE).hexdigest()}-{len(IMAGE)}-160x120"
PROMPT = "a private prompt of Ada"
# Ada has sent all her requests with this idempotency key.
ORDER = {"Idempotency-Key": "order-17"}
JPEG = b"a private preview of Ada"


@dataclass(frozen=True)
class Ids:
    """Ids that refer to data of one owner."""

    waiting: str = "0a" * 16
    running: str = "1a" * 16  # submitted to /sdapi; it has a preview
    done: str = "2a" * 16
    batch: str = "5a" * 16  # of two images
    edited: str = "6a" * 16  # two images submitted to /v1; running
    sent: str = "3a" * 32  # SHA-256 of an image sent to POST /images
    used: str = "4a" * 32  # SHA-256 of the input image of a job
    group: str = "7a" * 16  # a batch of jobs
    upload: str = f"77359400{'8a' * 12}-{UPLOADED}"  # an image sent to the bucket


ABSENT = Ids()

Attempt = dict[str, Any]  # arguments for httpx, except method and path
Attempts = Callable[[Ids], list[Attempt]]


def no_ids(_: Ids) -> list[Attempt]:
    """No attempts: the route has no parameter that could refer to data of another owner."""
    return [{}]


def references(ids: Ids) -> list[str]:
    """All values that can refer to an image."""
    paths = [f"/jobs/{ids.done}/images/0", f"/jobs/{ids.done}/result", f"/uploads/{ids.upload}"]
    return [*paths, f"/jobs/{ids.batch}/images/0", f"/jobs/{ids.batch}/images/1", ids.sent, ids.used]


def submits(ids: Ids) -> list[Attempt]:
    bodies: list[dict[str, Any]] = []
    for one in references(ids):
        bodies += [
            {"image": one},
            {"image": OWN, "mask": one},
            {"image": OWN, "controls": [{"type": "canny", "image": one}]},
            {"controls": [{"type": "canny", "image": one, "preprocess": False}]},
            {"image": OWN, "controls": [{"type": "canny"}, {"type": "canny", "image": one}]},
            {"image": OWN, "image_prompts": [{"image": one}]},
            {"image": OWN, "images": [one], "model": "editor", "instruction": "x"},
            {"images": [OWN, one], "model": "editor", "instruction": "x"},
            {"images": [one, OWN], "model": "editor", "instruction": "x"},
        ]
    return [{"json": body, "params": {"dry_run": dry_run}} for body in bodies for dry_run in (False, True)]


def batches(ids: Ids) -> list[Attempt]:
    """Batches with references in every field, as JSON lines and as values."""
    requests = [attempt["json"] for attempt in submits(ids)[::2]]
    lines = {"content-type": "application/jsonl"}
    attempts: list[Attempt] = [
        {"content": f"{json.dumps({'image': OWN})}\n{json.dumps(one)}", "headers": lines} for one in requests
    ]
    attempts += [{"json": {"request": one, "vary": {"seed": [1, 2]}}} for one in requests]
    return attempts + [{"json": {"request": {}, "vary": {"image": [OWN, one]}}} for one in references(ids)]


def batch_lists(ids: Ids) -> list[Attempt]:
    return [{}, {"params": {"cursor": f"{time.time() + 60}-{ids.group}"}}]


def control_maps(ids: Ids) -> list[Attempt]:
    return [{"json": {"type": "canny", "image": one}} for one in references(ids)]


def masks(ids: Ids) -> list[Attempt]:
    return [{"json": {"text": "house", "image": one}} for one in references(ids)]


def uploads(ids: Ids) -> list[Attempt]:
    return [{"json": {"image": one}} for one in references(ids)]


def lists(ids: Ids) -> list[Attempt]:
    cursors = [f"{time.time() + 60}-{ids.waiting}", f"{time.time() + 60}-{ids.done}"]
    return [{}, *({"params": {"cursor": one}} for one in cursors), *({"params": {"status": one}} for one in JobStatus)]


def forms(ids: Ids) -> list[Attempt]:
    """OpenAI forms: the image is a file, and images of other fields are references."""
    attempts: list[Attempt] = []
    for one in references(ids):
        own = {"image": ("a.png", IMAGE)}
        several = {"n": "2", "controls": json.dumps([{"type": "canny", "image": one}])}
        attempts += [
            {"files": {"image": (None, one)}},
            {"files": {"image": ("a.png", one.encode())}},
            {"files": own | {"mask": (None, one)}},
            {"files": own, "data": several},
            {"files": own, "data": {"controls": json.dumps([{"type": "canny", "image": one}])}},
            {"files": own, "data": {"image_prompts": json.dumps([{"image": one}])}},
            {"files": [("image[]", own["image"]), ("image[]", (None, one))], "data": {"model": "editor"}},
            {"files": [("image[]", own["image"]), ("image[]", ("b.png", one.encode()))], "data": {"model": "editor"}},
            {"files": own, "data": {"images": one, "model": "editor"}},
        ]
    return attempts


def edits(ids: Ids) -> list[Attempt]:
    return [attempt | {"data": {"prompt": "x", **attempt.get("data", {})}} for attempt in forms(ids)]


def web_ui(ids: Ids) -> list[Attempt]:
    bodies = [{"init_images": [one]} for one in references(ids)]
    bodies += [{"init_images": [OWN], "mask": one} for one in references(ids)]  # type: ignore[dict-item]
    units = [{"model": "canny", "module": "canny", "image": one} for one in references(ids)]
    bodies += [{"init_images": [OWN], "controlnet_units": [unit]} for unit in units]  # type: ignore[dict-item]
    return [{"json": body} for body in bodies]


def predictions(ids: Ids) -> list[Attempt]:
    """Predictions of the model that the path names."""
    bodies = [{"input": attempt["json"]} for attempt in submits(ids) if "model" not in attempt["json"]]
    return [{"json": body} for body in bodies]


def predictions_of_versions(ids: Ids) -> list[Attempt]:
    inputs = [dict(attempt["json"]) for attempt in submits(ids)]
    return [{"json": {"version": one.pop("model", "demo"), "input": one}} for one in inputs]


def hugging_face(ids: Ids) -> list[Attempt]:
    bodies: list[dict[str, Any]] = [{"inputs": one} for one in references(ids)]
    for one in references(ids):
        bodies += [
            {"inputs": OWN, "parameters": {"mask": one}},
            {"inputs": OWN, "parameters": {"controls": [{"type": "canny", "image": one}]}},
            {"inputs": OWN, "parameters": {"image_prompts": [{"image": one}]}},
        ]
    raw = [{"content": one.encode()} for one in references(ids)]
    return [*({"json": body} for body in bodies), *raw]


def files(ids: Ids) -> list[Attempt]:
    return [{"files": {"content": ("a.png", one.encode())}} for one in references(ids)]


WEB_UI_LISTS = (
    *("embeddings", "upscalers", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "sd-vae"),
    *("latent-upscale-modes", "script-info", "extensions", "cmd-flags", "memory"),
)
CONTROLNET_LISTS = ("version", "model_list", "module_list", "control_types", "settings")
# Attempts for each route. A route with an id in its path is tried with every id as well.
ATTEMPTS: dict[tuple[str, str], Attempts] = {
    ("POST", "/img2img"): submits,
    ("POST", "/control-maps"): control_maps,
    ("POST", "/masks"): masks,
    ("POST", "/batches"): batches,
    ("GET", "/batches"): batch_lists,
    ("POST", "/images"): uploads,
    ("POST", "/uploads"): lambda _: [{"json": {"sha256": "0" * 64, "bytes": 9, "content_type": "image/png"}}],
    ("GET", "/jobs"): lists,
    ("POST", "/v1/images/edits"): edits,
    ("POST", "/v1/images/variations"): forms,
    ("POST", "/sdapi/v1/img2img"): web_ui,
    ("POST", "/controlnet/img2img"): web_ui,
    ("POST", "/controlnet/detect"): lambda ids: [
        {"json": {"controlnet_module": "canny", "controlnet_input_images": [one]}} for one in references(ids)
    ],
    ("POST", "/sdapi/v1/extra-single-image"): lambda ids: [{"json": {"image": one}} for one in references(ids)],
    ("POST", "/sdapi/v1/extra-batch-images"): lambda ids: [
        {"json": {"imageList": [{"data": one}]}} for one in references(ids)
    ],
    ("POST", "/hf"): hugging_face,
    ("POST", "/hf/{model:path}"): hugging_face,
    ("POST", "/replicate/v1/predictions"): predictions_of_versions,
    ("POST", "/replicate/v1/models/{owner}/{name}/predictions"): predictions,
    ("POST", "/replicate/v1/files"): files,
    ("GET", "/replicate/v1/predictions"): lambda ids: [
        attempt for attempt in lists(ids) if "status" not in attempt.get("params", {})
    ],
    ("POST", "/sdapi/v1/png-info"): lambda ids: [{"json": {"image": one}} for one in references(ids)],
    ("POST", "/sdapi/v1/options"): lambda _: [{"json": {}}],
    ("POST", "/sdapi/v1/txt2img"): lambda _: [{"json": {"prompt": "x"}}],
    ("PUT", "/models/{name:model}"): lambda _: [{"json": {"source": "org/model"}}],
    ("DELETE", "/models/{name:model}"): no_ids,
    ("POST", "/models/{name:name}/reset"): no_ids,
    ("PUT", "/models/{name:name}/loras/{lora}"): lambda _: [{"json": {"source": "org/lora"}}],
    ("DELETE", "/models/{name:name}/loras/{lora}"): no_ids,
}
ATTEMPTS |= dict.fromkeys(
    [
        ("GET", "/models"),
        ("GET", "/models/{name:model}"),
        ("GET", "/metrics"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/openapi.json"),
        ("HEAD", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/docs/errors"),
        ("GET", "/docs/try-it-out.js"),
        ("GET", "/"),
        ("GET", "/assets/{name}"),
        ("GET", "/redoc"),
        ("GET", "/static-offline-docs"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model:path}"),
        ("GET", "/v1/{path:path}"),
        ("POST", "/v1/{path:path}"),
        ("GET", "/hf/{path:path}"),
        ("GET", "/replicate/v1/files"),
        ("GET", "/replicate/v1/models"),
        ("GET", "/replicate/v1/models/{owner}/{name}"),
        ("GET", "/replicate/v1/models/{owner}/{name}/versions"),
        ("GET", "/replicate/v1/models/{owner}/{name}/versions/{version}"),
        ("GET", "/replicate/v1/{path:path}"),
        ("POST", "/replicate/v1/{path:path}"),
        ("GET", "/sdapi/v1/progress"),
        ("POST", "/sdapi/v1/interrupt"),
        ("GET", "/sdapi/v1/samplers"),
        ("GET", "/sdapi/v1/schedulers"),
        ("GET", "/sdapi/v1/sd-models"),
        ("GET", "/sdapi/v1/options"),
        ("GET", "/sdapi/v1/scripts"),
        ("GET", "/sdapi/v1/loras"),
        *(("GET", f"/sdapi/v1/{name}") for name in WEB_UI_LISTS),
        *(("POST", f"/sdapi/v1/refresh-{name}") for name in ("checkpoints", "loras", "embeddings", "vae")),
        ("POST", "/sdapi/v1/interrogate"),
        *(("GET", f"/controlnet/{name}") for name in CONTROLNET_LISTS),
        ("POST", "/controlnet/txt2img"),
        ("GET", "/controlnet/{path:path}"),
        ("POST", "/controlnet/{path:path}"),
        ("GET", "/sdapi/v1/{path:path}"),
        ("POST", "/sdapi/v1/{path:path}"),
    ],
    no_ids,
)
ATTEMPTS |= {
    ("HEAD", path): attempts
    for (method, path), attempts in ATTEMPTS.items()
    if method == "GET" and path != "/static-offline-docs"
}


def attempts_at(method: str, path: str, ids: Ids) -> list[tuple[str, Attempt]]:
    """Return the paths and requests that try to reach the data of these ids."""
    if any(name in path for name in ("{job_id}", "{sha256}", "{batch_id}", "{upload_id}")):
        values = [getattr(ids, one.name) for one in fields(Ids)]
        return [(path_of(path, value, index), {}) for value in values for index in (0, 1)]
    assert (method, path) in ATTEMPTS, f"add requests for {method} {path} with another owner's ids to ATTEMPTS"
    return [(path_of(path), attempt) for attempt in ATTEMPTS[method, path](ids)]


class Scene:
    """Ada has jobs in every state, one of them submitted to /sdapi; Bob and an admin have none."""

    def __init__(self, url: str, settings: ApiSettings, redis: Redis, stack: ExitStack) -> None:
        redis.flushall()
        ModelRegistry(redis).register("test-worker", [ABLE, EDITOR], ttl_s=3600)
        keys, self._redis = ApiKeys(redis), redis
        self._blobs = Path(urlparse(settings.resolved_store_url).path)
        self.ada, self.bob = (stack.enter_context(client_with(url, keys)) for _ in range(2))
        self.admin = stack.enter_context(client_with(url, keys, Scope.ADMIN))
        self.response: dict[str, Any] = {}
        queue, store = JobQueue(redis), ObjectStore(settings.resolved_store_url)
        self._waiting = threading.Thread(target=self._submit_to_web_ui, daemon=True)
        self._waiting.start()
        while not redis.keys("i2i:a1111*"):
            time.sleep(0.02)
        [running] = queue.job_store.active_ids()
        self._editing = threading.Thread(target=self._submit_to_openai, daemon=True)
        self._editing.start()
        while len(queue.job_store.active_ids()) < 2:
            time.sleep(0.02)
        [edited] = set(queue.job_store.active_ids()) - {running}
        for job_id in (running, edited):
            queue.job_store.start(job_id, execution="e", worker="w")
            Previews(redis).publish(job_id, Preview(3, JPEG))
            redis.persist(f"i2i:preview:{job_id}")
        done, batch, waiting = self._job(ORDER), self._job(num_images=2), self._job()
        results = [succeed(job_id, queue, store) for job_id in (done, batch)]
        results += [png for png in (store.get(result_key(batch, 1)),) if png]
        sent = self.ada.post("/images", files={"image": IMAGE}).json()["sha256"]
        used = self.ada.get(f"/jobs/{waiting}").json()["request"]["image"]
        group = self.ada.post("/batches", json={"request": {"image": sent, "prompt": PROMPT}}).json()["id"]
        upload = PresignedUpload.parse(f"77359400{'8b' * 12}-{UPLOADED}")
        assert upload is not None
        key, owner = upload_key(upload.id), queue.job_store.find(waiting).owner
        queue.input_images.retain_upload(key, len(IMAGE), 3600, owner)
        store.put(key, IMAGE)
        self.ids = Ids(waiting, running, done, batch, edited, sent, used, group, upload.id)
        self.secrets = [PROMPT.encode(), b64encode(JPEG), *results, *map(b64encode, results)]

    def _submit_to_web_ui(self) -> None:
        body = {"init_images": [b64encode(IMAGE).decode()], "prompt": PROMPT, "width": 128, "height": 128, "n_iter": 2}
        self.response = self.ada.post("/sdapi/v1/img2img", json=body, timeout=None).json()

    def _submit_to_openai(self) -> None:
        data = {"prompt": PROMPT, "n": "2", "size": "128x128", "stream": "true"}
        self.ada.post("/v1/images/edits", files={"image": IMAGE}, data=data, timeout=None)

    def _job(self, headers: dict[str, str] | None = None, **options: Any) -> str:
        data = {"prompt": PROMPT, "width": 160, "height": 120, **options}
        response = self.ada.post("/img2img", files={"image": IMAGE}, data=data, headers=headers)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def state(self) -> dict[str, object]:
        """Contents of Redis and the store, except the blob that /readyz writes and the times of the keys' use."""
        in_redis = {str(key): self._redis.dump(key) for key in self._redis.scan_iter() if key != b"i2i:keys:used"}
        files = [path for path in self._blobs.rglob("*") if path.is_file() and path.name != "check"]
        in_store = {str(path): path.read_bytes() for path in files}
        return in_redis | in_store

    def with_absent_ids(self, text: str) -> str:
        """Return the text with Ada's ids replaced by unknown ones."""
        for one in fields(Ids):
            text = text.replace(getattr(self.ids, one.name), getattr(ABSENT, one.name))
        # In an error message, long ids are cut off.
        return text.replace(self.ids.upload[:32], ABSENT.upload[:32])

    def interrupted(self) -> bool:
        """Whether Ada's web UI request ends as cancelled."""
        self._waiting.join(20)
        return '"interrupted": true' in self.response.get("info", "")

    def cancel_edit(self) -> None:
        """Cancel Ada's request to OpenAI's route, and wait for its response."""
        self.ada.post(f"/jobs/{self.ids.edited}/cancel")
        self._editing.join(20)


@pytest.fixture(scope="module")
def scene(settings: ApiSettings, redis_url: str) -> Iterator[Scene]:
    with authenticated_server(settings) as url, Redis.from_url(redis_url) as redis, ExitStack() as stack:
        scene = Scene(url, settings, redis, stack)
        yield scene
        scene.ada.post("/sdapi/v1/interrupt")
        assert scene.interrupted()
        scene.cancel_edit()


@pytest.mark.parametrize(("method", "path"), every_route())
def test_no_route_shows_or_changes_another_owners_data(scene: Scene, method: str, path: str) -> None:
    before = scene.state()
    tried, absent = (attempts_at(method, path, ids) for ids in (scene.ids, ABSENT))
    for (theirs_at, theirs), (none_at, none) in zip(tried, absent, strict=True):
        theirs = theirs | {"headers": ORDER | theirs.get("headers", {})}
        response = scene.bob.request(method, theirs_at, **theirs)
        assert scene.state() == before
        assert not [secret for secret in scene.secrets if secret in response.content]
        if (theirs_at, theirs) == (none_at, none | {"headers": theirs["headers"]}):
            assert not [one for one in fields(Ids) if getattr(scene.ids, one.name) in response.text]
        else:
            as_if = scene.bob.request(method, none_at, **none)
            assert (response.status_code, scene.with_absent_ids(response.text)) == (as_if.status_code, as_if.text)


def test_every_attempt_matches_an_existing_route() -> None:
    assert set(ATTEMPTS) <= set(every_route())


def test_admin_sees_and_interrupts_only_its_own_web_ui_jobs(scene: Scene) -> None:
    before = scene.state()
    assert scene.admin.get("/sdapi/v1/progress").json()["state"]["job"] == ""
    assert scene.admin.post("/sdapi/v1/interrupt").json() == {}
    assert scene.state() == before


def test_attempts_succeed_for_the_owner(scene: Scene) -> None:
    """They are rejected because of the owner, not because of anything else in the request."""
    for attempts, path in (
        (submits, "/img2img"),
        (control_maps, "/control-maps"),
        (masks, "/masks"),
        (batches, "/batches"),
    ):
        for attempt in attempts(scene.ids):
            response = scene.ada.post(path, **attempt)
            assert response.status_code in (200, 202), response.text
    for attempt in edits(scene.ids):  # would wait for the end of the job
        if {"controls", "image_prompts"} & set(attempt["data"]):
            error = scene.bob.post("/v1/images/edits", **attempt).text
            assert any(one in error for one in ("There is no job", "No image of yours with this", "no such upload"))
    progress = scene.ada.get("/sdapi/v1/progress").json()
    assert progress["state"]["job"] == scene.ids.running
    assert progress["current_image"] == b64encode(JPEG).decode()
