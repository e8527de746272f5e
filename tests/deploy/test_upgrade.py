"""Processes of an earlier release beside those of this version, in every order (`make test-upgrade`).

RELEASE names the earlier revision.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from img2img.redis.model_registry import ModelRegistry
from tests.support.api_process import ApiProcess, api_process
from tests.support.images import encoded, gradient
from tests.support.processes import MODEL, SIDE, Service, Worker, wait_for
from tests.support.releases import install_release

THIS: dict[str, str] = {}

if not os.environ.get("RELEASE"):
    pytest.skip("runs an earlier release beside this version: `make test-upgrade`", allow_module_level=True)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment in which the package `img2img` is that of the earlier release."""
    return install_release(os.environ["RELEASE"], tmp_path_factory.mktemp("earlier"))


@pytest.fixture
def service(tiny_model: Path) -> Iterator[Service]:
    with TemporaryDirectory(prefix="i2i-") as folder:
        service = Service(Path(folder), tiny_model)
        try:
            yield service
        finally:
            service.stop()


@contextmanager
def api(service: Service, release: dict[str, str]) -> Iterator[httpx.Client]:
    process: ApiProcess
    with (
        api_process(service.folder, service.folder / "api.log", IMG2IMG_MODEL=str(service.model), **release) as process,
        httpx.Client(base_url=process.url, timeout=30) as client,
    ):
        yield client


def start_worker(service: Service, release: dict[str, str]) -> Worker:
    return service.start_worker(cold=True, **release)


def submit(client: httpx.Client, **fields: str) -> str:
    data = {"prompt": "a red house", "num_inference_steps": "2", "width": "32", "height": "32", **fields}
    response = client.post("/img2img", files={"image": encoded(gradient(SIDE, SIDE))}, data=data)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def assert_succeeds(client: httpx.Client, job_id: str) -> None:
    job = client.get(f"/jobs/{job_id}", params={"wait": 30}).json()
    assert job["status"] == "succeeded", job
    assert client.get(f"/jobs/{job_id}/result").status_code == 200


@pytest.mark.parametrize("api_first", [True, False], ids=["API server first", "worker first"])
@pytest.mark.parametrize("back", [False, True], ids=["upgrade", "rollback"])
def test_processes_are_replaced_one_by_one(
    service: Service, earlier: dict[str, str], api_first: bool, back: bool
) -> None:
    before, after = (THIS, earlier) if back else (earlier, THIS)
    with ExitStack() as stack:
        old_api = stack.enter_context(api(service, before))
        old_worker = start_worker(service, before)
        jobs = [submit(old_api)]
        assert_succeeds(old_api, jobs[0])
        new_api, new_worker = None, None
        if api_first:
            new_api = stack.enter_context(api(service, after))
        else:
            new_worker = start_worker(service, after)
            old_worker.kill()
        # One process of each version, with jobs of both API servers if there are two.
        clients = [client for client in (old_api, new_api) if client]
        for client in clients:
            jobs.append(submit(client, seed="7"))
        for client in clients:
            for job in jobs:
                assert_succeeds(client, job)
            assert [model["name"] for model in client.get("/models").json()["models"]] == [MODEL]
        # The rest is replaced.
        new_api = new_api or stack.enter_context(api(service, after))
        queued = submit(old_api, seed="8")
        if new_worker is None:
            old_worker.kill()
            start_worker(service, after)
        for job in (*jobs, queued, submit(new_api, seed="9")):
            assert_succeeds(new_api, job)


def test_workers_of_both_versions_serve_together(service: Service, earlier: dict[str, str]) -> None:
    with api(service, THIS) as client, api(service, earlier) as earlier_client:
        for release in (THIS, earlier):
            start_worker(service, release)
        wait_for(lambda: len(ModelRegistry(service.redis).live().get(MODEL, [])) == 2)
        jobs = [submit(sender, seed=str(seed)) for seed in range(6) for sender in (client, earlier_client)]
        for job in jobs:
            assert_succeeds(client, job)
            assert_succeeds(earlier_client, job)
