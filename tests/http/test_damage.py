"""Damaged and missing images in the blob store: they are never served, and never reported as an outage."""

import logging
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import httpx
import pytest
from PIL import UnidentifiedImageError
from redis import Redis

from img2img.blobs import ObjectStore
from img2img.client import Client, ServerError
from img2img.domain.blob_keys import input_key, result_key, upload_key
from img2img.erasure import Eraser
from img2img.errors import Deleted
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_registry import ModelRegistry
from img2img.stored_images import read_result
from tests.support.damage import DAMAGES, damage, flip_bit
from tests.support.finished_jobs import succeed
from tests.support.model_cards import CARD
from tests.support.problems import assert_problem

Submit = Callable[..., httpx.Response]
Finish = Callable[[str], bytes]
Change = Callable[[bytes], bytes] | None

every_damage = pytest.mark.parametrize("change", [*DAMAGES.values(), None], ids=[*DAMAGES, "missing"])


class DamagingStore:
    """A store that damages each result when it is written."""

    def __init__(self, store: ObjectStore, change: Change) -> None:
        self._store, self._change = store, change

    def put(self, key: str, data: bytes) -> bool:
        return self._change is None or self._store.put(key, self._change(data))


@contextmanager
def damaging_worker(queue: JobQueue, store: ObjectStore, change: Change) -> Iterator[None]:
    """Run a thread that completes jobs, whose results are damaged at once."""
    stopped = threading.Event()

    def work() -> None:
        while not stopped.wait(0.02):
            for job_id in queue.job_store.active_ids():
                succeed(job_id, queue, DamagingStore(store, change))  # type: ignore[arg-type]

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@pytest.fixture
def done(submit: Submit, finish: Finish) -> tuple[str, bytes]:
    """A succeeded job and its image."""
    job_id = submit(width=128, height=96).json()["id"]
    return job_id, finish(job_id)


def damage_count(http: httpx.Client, kind: str) -> float:
    match = re.search(rf'^img2img_damaged_images_total{{kind="{kind}"}} (\S+)$', http.get("/metrics").text, re.M)
    assert match
    return float(match[1])


@every_damage
def test_damaged_result_is_served_in_no_format(
    http: httpx.Client, store: ObjectStore, done: tuple[str, bytes], change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    job_id, _ = done
    key, before = result_key(job_id, 0), damage_count(http, "result")
    damage(store, key, change)
    paths = ["result", "images/0", "result?format=webp", "images/0?format=jpeg&quality=50"]
    with caplog.at_level(logging.ERROR):
        for path in paths:
            response = http.get(f"/jobs/{job_id}/{path}")
            problem = assert_problem(response, 500, "result_damaged")
            assert "damaged or missing" in problem["detail"]
            assert response.headers["cache-control"] == "no-store"
            assert "etag" not in response.headers
            assert http.head(f"/jobs/{job_id}/{path}").status_code == 500
    assert damage_count(http, "result") == before + 2 * len(paths)
    [line, *_] = [record for record in caplog.records if record.name == "img2img.stored_images"]
    assert line.getMessage() == f"{'damaged' if change else 'missing'} in the blob store: {key}"
    assert line.__dict__["job_id"] == job_id


def test_client_with_the_image_needs_no_check(http: httpx.Client, store: ObjectStore, done: tuple[str, bytes]) -> None:
    job_id, png = done
    damage(store, result_key(job_id, 0), DAMAGES["empty"])
    known = {"If-None-Match": f'"{sha256(png).hexdigest()}"'}
    assert http.get(f"/jobs/{job_id}/result", headers=known).status_code == 304
    assert http.get(f"/jobs/{job_id}/result", headers={"If-None-Match": '"other"'}).status_code == 500


@every_damage
def test_damaged_result_is_no_input(
    http: httpx.Client, redis: Redis, store: ObjectStore, done: tuple[str, bytes], change: Change
) -> None:
    job_id, _ = done
    ModelRegistry(redis).register("maps", [CARD.model_copy(update={"preprocessors": ("tile",)})], ttl_s=60)
    damage(store, result_key(job_id, 0), change)
    reference = f"/jobs/{job_id}/images/0"
    assert_problem(http.post("/img2img", json={"image": reference}), 500, "result_damaged")
    assert_problem(http.post("/img2img", files={"image": (None, reference)}), 500, "result_damaged")
    assert_problem(http.post("/img2img?dry_run=true", json={"image": reference}), 500, "result_damaged")
    assert_problem(http.post("/control-maps", json={"image": reference, "type": "tile"}), 500, "result_damaged")
    assert len(http.get("/jobs").json()["jobs"]) == 1


@every_damage
@pytest.mark.parametrize("options", [{}, {"response_format": "url"}, {"output_format": "webp"}, {"stream": "true"}])
def test_openai_api_returns_no_damaged_image(
    http: httpx.Client, queue: JobQueue, store: ObjectStore, change: Change, options: dict[str, str], image_bytes: bytes
) -> None:
    with damaging_worker(queue, store, change):
        response = http.post("/v1/images/edits", files={"image": image_bytes}, data={"prompt": "a house", **options})
    if options.get("stream"):
        assert "event: error" in response.text
    else:
        assert response.status_code == 500
        assert response.headers["cache-control"] == "no-store"
        assert response.json()["error"]["type"] == "server_error"
    assert '"result_damaged"' in response.text
    assert "b64_json" not in response.text


@every_damage
def test_web_ui_api_returns_no_damaged_image(
    http: httpx.Client, queue: JobQueue, store: ObjectStore, change: Change, image_bytes: bytes
) -> None:
    with damaging_worker(queue, store, change):
        body = {"init_images": [b64encode(image_bytes).decode()], "width": 128, "height": 128}
        assert_problem(http.post("/sdapi/v1/img2img", json=body), 500, "result_damaged")


def test_one_damaged_image_of_several_is_named(
    http: httpx.Client, submit: Submit, finish: Finish, store: ObjectStore
) -> None:
    job_id = submit(num_images=3).json()["id"]
    finish(job_id)
    damage(store, result_key(job_id, 1), DAMAGES["truncated"])
    assert [http.get(f"/jobs/{job_id}/images/{index}").status_code for index in range(3)] == [200, 500, 200]
    assert "Image 1 " in http.get(f"/jobs/{job_id}/images/1").json()["detail"]
    with Client(str(http.base_url)) as client, pytest.raises(ServerError, match="Image 1 ") as raised:
        client.download_images(job_id)
    assert raised.value.code == "result_damaged"


def test_image_of_a_job_that_is_deleted_meanwhile_is_gone(
    queue: JobQueue, store: ObjectStore, done: tuple[str, bytes]
) -> None:
    job_id, _ = done
    record = queue.job_store.find(job_id)

    class DeletedMeanwhile:
        def get(self, key: str) -> None:
            Eraser(queue, store).delete_job(job_id)

    with pytest.raises(Deleted):
        read_result(DeletedMeanwhile(), queue.job_store, record, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
def test_damaged_upload_is_refused_until_it_is_sent_again(
    http: httpx.Client, store: ObjectStore, change: Change, image_bytes: bytes
) -> None:
    digest = http.post("/images", files={"image": image_bytes}).json()["sha256"]
    before = damage_count(http, "upload")
    damage(store, upload_key(digest), change)
    [error] = assert_problem(http.post("/img2img", json={"image": digest}), 422, "invalid_parameter")["errors"]
    assert error["field"] == "image"
    assert "is damaged; send it" in error["message"]
    assert damage_count(http, "upload") == before + 1
    assert http.post("/images", files={"image": image_bytes}).status_code == 201
    assert store.get(upload_key(digest)) == image_bytes
    assert http.post("/img2img", json={"image": digest}).status_code == 202


def test_submit_replaces_a_damaged_input(http: httpx.Client, submit: Submit, store: ObjectStore) -> None:
    digest = submit(seed=1).json()["request"]["image"]
    good = store.get(input_key(digest))
    for change in DAMAGES.values():
        damage(store, input_key(digest), change)
        assert submit(seed=1).status_code == 202
        assert store.get(input_key(digest)) == good


def test_image_that_cannot_be_decoded_is_no_outage(
    http: httpx.Client, done: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow's errors are OSErrors, as are those of a store."""
    errors: list[Exception] = [UnidentifiedImageError("cannot identify"), OSError("image file is truncated")]
    errors += [OSError(5, "Input/output error"), OSError(28, "No space left on device")]

    def fail(*_: Any) -> bytes:
        raise errors.pop(0)

    monkeypatch.setattr("img2img.app.routes.results.convert_image", fail)
    path = f"/jobs/{done[0]}/result?format=webp"
    for _ in range(2):
        assert_problem(http.get(path), 500, "internal_error")
    assert_problem(http.get(path), 503, "unavailable")
    assert_problem(http.get(path), 507, "storage_full")


def test_store_that_is_gone_is_an_outage(http: httpx.Client, done: tuple[str, bytes], store: ObjectStore) -> None:
    assert store._folder is not None
    elsewhere = store._folder.with_name("elsewhere")
    store._folder.rename(elsewhere)
    try:
        assert_problem(http.get(f"/jobs/{done[0]}/result"), 503, "unavailable")
    finally:
        elsewhere.rename(store._folder)
    assert http.get(f"/jobs/{done[0]}/result").status_code == 200


def test_bit_flips_anywhere_are_found(http: httpx.Client, done: tuple[str, bytes], store: ObjectStore) -> None:
    job_id, png = done
    for at in range(0, len(png), max(1, len(png) // 40)):
        damage(store, result_key(job_id, 0), lambda _, at=at: flip_bit(png, at))  # type: ignore[misc]
        assert http.get(f"/jobs/{job_id}/result").status_code == 500
    damage(store, result_key(job_id, 0), lambda _: png)
    assert http.get(f"/jobs/{job_id}/result").content == png
