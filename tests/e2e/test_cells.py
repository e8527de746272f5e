"""Two cells behind one API server: each with a redis-server, a worker and its part of the blob store."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from PIL import Image

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port
from img2img.blobs import ObjectStore
from img2img.domain.api_key import Scope
from img2img.domain.blob_keys import result_key
from img2img.domain.cells import cell_digits, digits_of
from img2img.redis.api_keys import ApiKeys
from tests.support.authenticated import client_with
from tests.support.cli_command import img2img
from tests.support.images import encoded, gradient
from tests.support.processes import Service, wait_for
from tests.support.servers import http_server

NAMES = ("a", "b")
IMAGE = encoded(gradient(64, 64))


@dataclass
class Scene:
    """The cells, and a client of each with a key of it."""

    url: str
    services: dict[str, Service]
    clients: dict[str, httpx.Client]
    store_url: str
    setting: str

    def store(self, cell: str) -> ObjectStore:
        return ObjectStore(f"{self.store_url}/{cell}")

    @contextmanager
    def client(self, cell: str, *scopes: Scope) -> Iterator[httpx.Client]:
        """A client with a new key."""
        with client_with(self.url, ApiKeys(self.services[cell].redis), *scopes) as client:
            yield client


@pytest.fixture(scope="module")
def scene(tiny_model: Path) -> Iterator[Scene]:
    with ExitStack() as stack:
        folders = {name: Path(stack.enter_context(TemporaryDirectory(prefix="i2i-"))) for name in (*NAMES, "store")}
        services = {name: Service(folders[name], tiny_model) for name in NAMES}
        for one in services.values():
            stack.callback(one.stop)
        store_url = folders["store"].as_uri()
        for name, one in services.items():
            one.start_worker(wait=False, IMG2IMG_STORE_URL=f"{store_url}/{name}")
        for one in services.values():
            one.wait_until_live(one.workers[0])
        setting = " ".join(f"{name}={one.url}" for name, one in services.items())
        settings = ApiSettings(
            _env_file=None,
            data_dir=folders["store"],
            store_url=store_url,
            cells=setting,
            keys="required",
            model=str(tiny_model),
            port=free_port(),
        )
        url = stack.enter_context(http_server(settings))
        keys = {name: ApiKeys(one.redis) for name, one in services.items()}
        clients = {name: stack.enter_context(client_with(url, keys[name])) for name in NAMES}
        yield Scene(url, services, clients, store_url, setting)


def submit(client: httpx.Client, image: Any = IMAGE, key: str | None = None, **fields: Any) -> dict[str, Any]:
    headers = {"Idempotency-Key": key} if key else {}
    files = {"image": image} if isinstance(image, bytes) else {"image": (None, image)}
    response = client.post("/img2img", files=files, data={"num_inference_steps": 2, **fields}, headers=headers)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def ended(client: httpx.Client, path: str) -> dict[str, Any]:
    def read() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(path, params={"wait": 5}).json()
        return job if job["finished_at"] else None

    return wait_for(read, timeout_s=60)


def ids(client: httpx.Client, path: str = "/jobs", **params: Any) -> list[str]:
    """Ids of a whole list, page by page."""
    found: list[str] = []
    while True:
        document = client.get(path, params=params).json()
        found += [one["id"] for one in document[path.strip("/")]]
        if document["next_cursor"] is None:
            return found
        params["cursor"] = document["next_cursor"]


@pytest.mark.parametrize("cell", NAMES)
def test_job_lives_in_the_cell_of_its_key(scene: Scene, cell: str) -> None:
    client, [other] = scene.clients[cell], [one for one in NAMES if one != cell]
    job = submit(client, seed=1)
    path = f"/jobs/{job['id']}"
    assert cell_digits(job["id"]) == digits_of(cell)
    assert scene.services[cell].job_store.get(job["id"]) is not None
    assert scene.services[other].job_store.get(job["id"]) is None
    with client.stream("GET", f"{path}/events") as stream:
        events = [line for line in stream.iter_lines() if line.startswith("event: ")]
    assert events[-1] == "event: succeeded"
    assert ended(client, path)["status"] == "succeeded"
    png = client.get(f"{path}/result")
    assert Image.open(BytesIO(png.content)).format == "PNG"
    assert scene.store(cell).get(result_key(job["id"], 0)) == png.content
    assert scene.store(other).get(result_key(job["id"], 0)) is None
    assert job["id"] in ids(client)
    again = submit(client, image=f"{path}/images/0", strength=0.5)
    assert client.post(f"/jobs/{again['id']}/cancel").status_code == 200

    # A key of another cell reaches the cell of the id, and does not see the job.
    for method, at in (("GET", path), ("GET", f"{path}/result"), ("DELETE", path), ("POST", f"{path}/cancel")):
        assert scene.clients[other].request(method, at).status_code == 404
    assert job["id"] not in ids(scene.clients[other])
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 410
    assert scene.store(cell).get(result_key(job["id"], 0)) is None


@pytest.mark.parametrize("cell", NAMES)
def test_everything_of_an_owner_is_in_one_cell(scene: Scene, cell: str) -> None:
    with scene.client(cell) as client:
        first, repeated = (submit(client, key="order-1", seed=2) for _ in range(2))
        assert first["id"] == repeated["id"]
        sha256 = client.post("/images", files={"image": IMAGE}).json()["sha256"]
        assert ended(client, f"/jobs/{submit(client, image=sha256, seed=3)['id']}")["status"] == "succeeded"
        body = {"request": {"image": sha256, "num_inference_steps": 1}, "vary": {"seed": [1, 2, 3]}}
        batch = client.post("/batches", json=body).json()
        assert cell_digits(batch["id"]) == digits_of(cell)
        assert ended(client, f"/batches/{batch['id']}")["counts"]["succeeded"] == 3
        jobs = client.get(f"/batches/{batch['id']}/jobs").json()["jobs"]
        assert {cell_digits(job["id"]) for job in jobs} == {digits_of(cell)}
        archive = zipfile.ZipFile(BytesIO(client.get(f"/batches/{batch['id']}/results").content))
        assert len([name for name in archive.namelist() if name.endswith(".png")]) == 3
        assert ids(client, "/batches") == [batch["id"]]
        assert len(ids(client, limit=2)) == 5
        assert [model["name"] for model in client.get("/models").json()["models"]] == ["tiny"]
        for path in (f"/batches/{batch['id']}", f"/images/{sha256}"):
            assert client.delete(path).status_code == 204
        key = client.headers["authorization"].removeprefix("Bearer ")
        found = ApiKeys(scene.services[cell].redis).find(key)
        assert found is not None
        ApiKeys(scene.services[cell].redis).revoke(found.id)
        wait_for(lambda: client.get("/jobs").status_code == 401, timeout_s=10)


def test_admin_sees_the_jobs_of_all_cells(scene: Scene) -> None:
    with scene.client("a", Scope.ADMIN) as admin:
        made = [submit(scene.clients[name], seed=index)["id"] for index, name in enumerate(NAMES * 3)]
        listed = ids(admin, limit=2)
        assert [one for one in listed if one in made] == made[::-1], "newest first"
        assert len(listed) == len(set(listed))
        for job_id in made:
            assert ended(admin, f"/jobs/{job_id}")["status"] == "succeeded"
            assert admin.get(f"/jobs/{job_id}/result").status_code == 200
        assert admin.delete(f"/jobs/{made[-1]}").status_code == 204
        assert scene.clients[NAMES[-1]].get(f"/jobs/{made[-1]}").status_code == 410


def test_health_and_metrics_show_each_cell(scene: Scene) -> None:
    ready = httpx.get(f"{scene.url}/readyz")
    assert (ready.status_code, ready.json()["cells"]) == (200, {"a": True, "b": True})
    assert ready.json()["redis"]["detail"] == "a: responds; b: responds"
    with scene.client("b", Scope.METRICS) as client:
        text = client.get("/metrics").text
    for name in NAMES:
        assert f'img2img_redis_up{{cell="{name}"}} 1.0' in text
        assert f'img2img_workers{{cell="{name}",model="tiny"}} 1.0' in text
    assert text.count("# TYPE img2img_workers gauge") == 1


def test_keys_are_created_in_a_cell(scene: Scene, tmp_path: Path) -> None:
    unnamed = img2img(tmp_path, "keys", "create", "--name", "ada", IMG2IMG_CELLS=scene.setting)
    assert (unnamed.returncode, "name the cell by --cell, one of: a, b" in unnamed.stderr) == (2, True)
    done = img2img(tmp_path, "keys", "create", "--name", "ada", "--cell", "b", IMG2IMG_CELLS=scene.setting)
    assert done.returncode == 0, done.stderr
    assert "ada" in [key.name for key in ApiKeys(scene.services["b"].redis).all()]
    serve = img2img(tmp_path, "serve", IMG2IMG_CELLS=scene.setting)
    assert (serve.returncode, "run `img2img api`" in serve.stderr) == (2, True)
    api = img2img(tmp_path, "api", "--port", free_port(), IMG2IMG_CELLS=scene.setting)
    assert api.returncode != 0
    assert "IMG2IMG_KEYS=required" in api.stderr


# Last, because it kills the Redis of a cell.
def test_cell_that_is_down_leaves_the_others_working(scene: Scene) -> None:
    down, up = scene.services["b"], scene.clients["a"]
    kept = submit(scene.clients["b"], seed=5)
    ended(scene.clients["b"], f"/jobs/{kept['id']}")
    down.kill_redis()
    wait_for(lambda: httpx.get(f"{scene.url}/readyz").json()["cells"] == {"a": True, "b": False}, timeout_s=20)
    assert httpx.get(f"{scene.url}/readyz").status_code == 200
    assert ended(up, f"/jobs/{submit(up, seed=6)['id']}")["status"] == "succeeded"
    refused = wait_for(lambda: _refused(scene.clients["b"]), timeout_s=10)
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert up.get(f"/jobs/{kept['id']}").status_code == 503
    with scene.client("a", Scope.ADMIN, Scope.METRICS) as admin:
        assert admin.get("/jobs").status_code == 503, "the list would not be complete"
        text = admin.get("/metrics").text
        assert 'img2img_redis_up{cell="b"} 0.0' in text
        assert 'img2img_redis_up{cell="a"} 1.0' in text
    down.start_redis()
    assert wait_for(lambda: scene.clients["b"].get(f"/jobs/{kept['id']}").status_code == 200, timeout_s=20)
    job = wait_for(lambda: _submitted(scene.clients["b"]), timeout_s=20)
    assert ended(scene.clients["b"], f"/jobs/{job['id']}")["status"] == "succeeded"
    assert json.loads(httpx.get(f"{scene.url}/readyz").text)["cells"]["a"]


def _refused(client: httpx.Client) -> httpx.Response | None:
    response = client.get("/jobs")
    return response if response.status_code != 200 else None


def _submitted(client: httpx.Client) -> dict[str, Any] | None:
    response = client.post("/img2img", files={"image": IMAGE}, data={"num_inference_steps": 2})
    return response.json() if response.status_code == 202 else None
