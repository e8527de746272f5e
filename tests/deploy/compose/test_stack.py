"""The service in containers, from newly built images (`make test-compose`). Needs a container engine; takes minutes."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.deploy.compose.stack import ROOT, SLOW_S, Stack, compose_command, run

# Enough work that a worker can be killed while it runs.
LONG = {"prompt": "a watercolor painting of a house", "strength": 1, "num_inference_steps": 60}
SHORT = {"prompt": "a pencil sketch of a house", "strength": 0.4, "num_inference_steps": 10}

if "TEST_COMPOSE" not in os.environ:
    pytest.skip("builds images and starts containers, for minutes: `make test-compose`", allow_module_level=True)
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    compose = compose_command()
    if compose is None:
        pytest.skip("no container engine: `docker info` and `docker compose version` (or docker-compose) must succeed")
    stack = Stack(compose)
    stack.compose("build", REVISION="under-test")
    try:
        stack.up()
        yield stack
    finally:
        stack.down("--volumes", "--timeout", "5")


def result(stack: Stack, job_id: str) -> bytes:
    """Return the image of a job after checking that the job has succeeded and the hash matches its record."""
    job = stack.job(job_id)
    assert job["status"] == "succeeded", job
    response = stack.http.get(f"/jobs/{job_id}/result")
    assert response.status_code == 200
    assert sha256(response.content).hexdigest() == job["images"][0]["sha256"]
    Image.open(BytesIO(response.content)).load()
    return response.content


def all_ended(stack: Stack, jobs: list[str]) -> bool:
    return all(stack.job(job)["status"] not in ("queued", "running") for job in jobs)


def test_job_returns_an_image(stack: Stack) -> None:
    job = stack.submit(**SHORT)
    stack.wait_until(lambda: all_ended(stack, [job]))
    assert Image.open(BytesIO(result(stack, job))).size == (128, 128)


def test_readme_script_writes_an_image(stack: Stack, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    [code] = [
        block for block in re.findall(r"^```bash\n(.*?)^```", readme, re.M | re.S) if block.startswith("job=$(curl")
    ]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code = code.replace("http://127.0.0.1:8000", str(stack.http.base_url))
    subprocess.run(["bash", "-euc", code], cwd=tmp_path, check=True, timeout=SLOW_S)
    Image.open(tmp_path / "painting.png").load()


@pytest.mark.parametrize("service", ["api", "worker", "webhooks", "redis"])
def test_container_has_no_privileges(stack: Stack, service: str) -> None:
    [container] = stack.containers(service)
    host = container["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert container["Config"]["User"] not in ("", "root", "0")
    assert bool(host["PortBindings"]) == (service == "api")
    uid = run("docker", "exec", container["Id"], "sh", "-c", "id -u; grep CapEff /proc/1/status; touch /x")
    assert uid.stdout.split()[0] != "0"
    assert uid.stdout.split()[-1] == "0" * 16
    assert "Read-only file system" in uid.stderr


def test_environments_contain_no_secrets(stack: Stack) -> None:
    for service in ("api", "worker", "webhooks", "redis"):
        for container in stack.containers(service):
            assert not [line for line in container["Config"]["Env"] if "redis://" in line or "whsec_" in line]


def python(stack: Stack, service: str, code: str) -> str:
    container = stack.containers(service)[0]["Id"]
    done = run("docker", "exec", container, "python", "-c", code)
    return (done.stdout + done.stderr).strip()


def test_images_have_labels_and_only_their_packages(stack: Stack) -> None:
    find = "from importlib.util import find_spec; print([name for name in {} if find_spec(name)])"
    assert python(stack, "api", find.format(["torch", "diffusers", "numpy", "worker", "demo_model"])) == "[]"
    assert python(stack, "worker", find.format(["fastapi", "uvicorn", "img2img.app"])) == "[]"
    for image in ("img2img-api", "img2img-worker"):
        labels = run("docker", "image", "inspect", "--format", "{{json .Config.Labels}}", image).stdout
        assert '"org.opencontainers.image.revision":"under-test"' in labels
        assert '"org.opencontainers.image.version":"0.1.0"' in labels


def test_redis_requires_a_password_and_restricts_commands(stack: Stack) -> None:
    program = (
        "from redis import Redis; from img2img.worker.settings import WorkerSettings as S; r = Redis.from_url({}); {}"
    )
    worker, anonymous = "S().resolved_redis_url", "'redis://redis:6379'"
    assert "AuthenticationError" in python(stack, "worker", program.format(anonymous, "r.ping()"))
    assert python(stack, "worker", program.format(worker, "print(r.ping())")) == "True"
    for forbidden in ("r.hgetall('i2i:keys')", "r.config_get('*')", "r.flushall()", "r.keys('*')"):
        assert "no permissions" in python(stack, "worker", program.format(worker, forbidden)).lower()
    [redis] = stack.containers("redis")
    command = "redis-cli --user health --pass any --no-auth-warning {}"
    assert run("docker", "exec", redis["Id"], "sh", "-c", command.format("ping")).stdout.strip() == "PONG"
    assert "NOPERM" in run("docker", "exec", redis["Id"], "sh", "-c", command.format("dbsize")).stdout


def test_prometheus_scrapes_api_and_worker(stack: Stack) -> None:
    pulled = stack.compose("--profile", "observability", "up", "--detach", "prometheus", check=False)
    if pulled.returncode and not stack.containers("prometheus"):
        pytest.skip(f"no image of Prometheus: {pulled.stderr.strip()[-200:]}")
    program = "import httpx; print(httpx.get('http://prometheus:9090/api/v1/query', params={'query': '%s'}).text)"

    def values(query: str) -> dict[str, str]:
        """Return the values of a query by scrape job."""
        output = python(stack, "api", program % query)
        rows = json.loads(output)["data"]["result"] if output.startswith("{") else []
        return {row["metric"]["job"]: row["value"][1] for row in rows}

    stack.wait_until(lambda: values("up") == {"img2img-api": "1", "img2img-worker": "1"}, 120)
    stack.wait_until(lambda: "img2img-worker" in values("img2img_images_total"), 120)
    assert values("img2img_redis_up") == {"img2img-api": "1"}


def test_port_on_all_addresses_requires_keys(stack: Stack) -> None:
    refused = stack.compose(
        "run", "--rm", "--no-deps", "-e", "IMG2IMG_PUBLISHED_HOST=0.0.0.0", "api", "img2img", "api", check=False
    )
    assert refused.returncode == 2
    assert "requests need an API key, and none exists yet" in refused.stdout + refused.stderr
    created = stack.compose("run", "--rm", "--no-deps", "-T", "api", "img2img", "keys", "create", "--name", "me")
    assert created.stdout.strip().splitlines()[-1].startswith("i2i_")


def test_container_killed_during_a_batch_loses_no_job(stack: Stack) -> None:
    stack.up(workers=2)
    jobs = [stack.submit(**LONG, seed=seed) for seed in range(8)]

    def victims() -> list[dict[str, Any]]:
        """Return the containers that run one of the jobs."""
        hosts = run_by(stack, jobs)
        return [worker for worker in stack.containers("worker") if worker["Config"]["Hostname"] in hosts]

    stack.wait_until(victims)
    victim = victims()[0]
    name = victim["Config"]["Hostname"]
    affected = [job for job in jobs if name in run_by(stack, [job])]
    run("docker", "kill", "--signal", "KILL", victim["Id"])
    affected = [job for job in affected if stack.job(job)["status"] == "running"]
    assert affected, "all jobs had ended before the kill"
    stack.wait_until(lambda: all_ended(stack, jobs))
    assert len({result(stack, job) for job in jobs}) == len(jobs)
    assert not [job for job in affected if stack.job(job)["worker"].startswith(name)]
    assert len(stack.containers("worker")) == 1


def run_by(stack: Stack, jobs: list[str]) -> set[str]:
    """Return the host names of workers that run one of the jobs and have done a step of it."""
    running = [job for job in map(stack.job, jobs) if job["status"] == "running" and job["progress"]["step"] > 0]
    return {job["worker"].split("-")[0] for job in running}


def test_down_and_up_keeps_jobs_and_results(stack: Stack) -> None:
    stack.up()
    done = stack.submit(**SHORT)
    stack.wait_until(lambda: all_ended(stack, [done]))
    original = result(stack, done)
    stack.compose("stop", "worker")
    waiting = [stack.submit(**SHORT, seed=seed) for seed in range(5)]
    stack.down()
    assert not stack.containers("redis")
    stack.up()
    assert result(stack, done) == original
    stack.wait_until(lambda: all_ended(stack, waiting))
    assert len({result(stack, job) for job in waiting}) == len(waiting)


def test_worker_loads_a_cached_model_offline(stack: Stack) -> None:
    """The demo model needs no hub, so the test only checks the environment of the worker."""
    stack.up()
    [worker] = stack.containers("worker")

    def marks() -> str:
        return run("docker", "exec", worker["Id"], "sh", "-c", "ls /models").stdout

    stack.wait_until(lambda: "loaded-" in marks())
    run("docker", "restart", worker["Id"])
    stack.wait_until(lambda: stack.live_workers() == 1)
    assert "HF_HUB_OFFLINE=1" in run("docker", "exec", worker["Id"], "sh", "-c", "cat /proc/[0-9]*/environ").stdout
