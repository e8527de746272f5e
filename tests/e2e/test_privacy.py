"""A whole service with two API keys: nothing private leaves it, nothing that was deleted stays."""

import base64
import io
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from stat import S_IMODE, S_ISDIR
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from redis import Redis

from img2img.blobs import ObjectStore
from img2img.domain.blob_keys import input_key
from img2img.domain.job import JobOptions, JobStatus
from img2img.domain.webhook import Webhook
from img2img.private_files import UMASK
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import EXPIRING_JOBS
from img2img.settings import embedded_redis_socket
from tests.support.cli_command import img2img
from tests.support.images import encoded, gradient
from tests.support.processes import wait_for
from tests.support.serving import serving
from tests.support.specs import make_spec
from tests.support.trace_collectors import Collector, collecting
from tests.support.webhook_receivers import Receiver, receiving

MARKER = "zq7xprivatemarkerxq7z"
SIZE = {"width": 64, "height": 64, "num_inference_steps": 2}
LONG = {"width": 128, "height": 128, "num_inference_steps": 150, "strength": 1, "num_images": 8}


def marked_image(blue: int) -> bytes:
    """Return a PNG with the marker in its metadata and pixels of its own."""
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("comment", MARKER)
    Image.open(io.BytesIO(encoded(gradient(64, 64, blue=blue)))).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@dataclass
class Scene:
    """The service and the clients of its keys."""

    folder: Path
    data: Path
    redis: Redis
    keys: dict[str, str]
    clients: dict[str, httpx.Client]
    receiver: Receiver
    collector: Collector

    def img2img(self, *arguments: str) -> str:
        done = img2img(self.folder, *arguments, "--data-dir", str(self.data))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def files(self) -> set[str]:
        """Return the blobs, except the one that /readyz writes."""
        store = self.data / "store"
        return {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file() and path.name != "check"}

    def in_redis(self) -> str:
        return " ".join(f"{key!r} {self.redis.dump(key)!r}" for key in self.redis.scan_iter(count=1000))

    def on_disk(self) -> set[str]:
        """Return the files that contain the marker."""
        paths = [path for path in self.data.rglob("*") if path.is_file()]
        return {path.name for path in paths if path.exists() and MARKER.encode() in path.read_bytes()}


@pytest.fixture(scope="module")
def scene(model_folder: Path) -> Iterator[Scene]:
    """A service of which every setting that keeps data of clients is on."""
    usual = os.umask(0o022)
    with TemporaryDirectory(prefix="i2i-") as name, receiving() as receiver, collecting() as collector:
        folder = Path(name)
        data = folder / "data"
        secrets = {}
        for owner in ("ada", "bob"):
            done = img2img(folder, "keys", "create", "--name", owner, "--data-dir", str(data))
            secrets[owner] = done.stdout.strip()
            assert secrets[owner], done.stderr
        settings = {
            "IMG2IMG_KEYS": "required",
            "IMG2IMG_RATE_LIMIT": "1000000/hour",
            "IMG2IMG_WEBHOOK_ALLOW_PRIVATE": "true",
            "IMG2IMG_LOG_LEVEL": "DEBUG",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        log = folder / "log"
        log.touch()
        with (
            serving(data, model_folder, log=log, **settings) as http,
            Redis(unix_socket_path=str(embedded_redis_socket(data))) as redis,
        ):
            # Otherwise the marker could be there without being found.
            redis.config_set("rdbcompression", "no")
            clients = {
                owner: httpx.Client(base_url=http.base_url, headers={"X-API-Key": secret}, timeout=60)
                for owner, secret in secrets.items()
            }
            listed = img2img(folder, "keys", "list", "--data-dir", str(data)).stdout
            keys = {line.split()[-1]: line.split()[0] for line in listed.splitlines()}
            receiver.responses = [(500, {})] * 1000
            yield Scene(folder, data, redis, keys, clients, receiver, collector)
            for client in clients.values():
                client.close()
    os.umask(usual)


def submit(client: httpx.Client, image: bytes, key: str | None = None, **fields: Any) -> str:
    headers = {"Idempotency-Key": key} if key else {}
    response = client.post("/img2img", files={"image": image}, data=fields, headers=headers)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = client.get(f"/jobs/{job_id}?wait=60").json()
    assert job["status"] == "succeeded", job
    return job


def fill(scene: Scene, owner: str, blue: int, *, marker: str) -> tuple[str, str]:
    """Send everything that a client can send. Returns a job that has succeeded and the hash of an upload."""
    client = scene.clients[owner]
    image = marked_image(blue) if marker == MARKER else encoded(gradient(64, 64, blue=blue))
    texts = {"prompt": marker, "negative_prompt": marker, "webhook": f"{scene.receiver.url}{marker}"}
    done = submit(client, image, f"key-{owner}", **texts, **SIZE)
    ended(client, done)
    digest = client.post("/images", files={"image": image}).json()["sha256"]
    mask = base64.b64encode(encoded(gradient(64, 64, blue=blue + 1))).decode()
    inpainted = client.post("/img2img", json={"image": digest, "mask": mask, "prompt": marker, **SIZE})
    assert inpainted.status_code == 202, inpainted.text
    ended(client, inpainted.json()["id"])
    line = json.dumps({"image": digest, "prompt": marker, "name": marker, **SIZE})
    batch = client.post("/batches", content=line, headers={"content-type": "application/jsonl"})
    assert batch.status_code == 202, batch.text
    assert client.get(f"/batches/{batch.json()['id']}?wait=60").json()["counts"]["succeeded"] == 1
    return done, digest


def test_everything_of_a_key_is_forgotten(scene: Scene) -> None:
    ada, bob, redis = scene.clients["ada"], scene.clients["bob"], scene.redis
    queue = JobQueue(redis)
    bobs_job, bobs_upload = fill(scene, "bob", 10, marker="public")
    before = {"files": scene.files(), "jobs": jobs_of(bob)}
    wait_for(lambda: redis.zcard("i2i:outbox") == 1)

    fill(scene, "ada", 20, marker=MARKER)
    expired, deleted = (
        submit(ada, marked_image(seed), prompt=MARKER, webhook=f"{scene.receiver.url}{MARKER}", **SIZE)
        for seed in (30, 40)
    )
    ended(ada, expired)
    ended(ada, deleted)
    wait_for(lambda: scene.receiver.of(expired))
    redis.zadd(EXPIRING_JOBS, {expired: 1})
    wait_for(lambda: ada.get(f"/jobs/{expired}").status_code == 410)
    assert MARKER in scene.in_redis()
    assert ada.delete(f"/jobs/{deleted}").status_code == 204
    running = [submit(ada, marked_image(50 + seed), f"long-{seed}", prompt=MARKER, **LONG) for seed in range(8)]
    body = {"init_images": [base64.b64encode(marked_image(90)).decode()], "prompt": MARKER, "width": 64, "height": 64}
    with ThreadPoolExecutor(2) as pool:
        web_ui = pool.submit(ada.post, "/sdapi/v1/img2img", json=body | {"steps": 150, "denoising_strength": 1})
        previews = threading.Event()
        stream = pool.submit(follow, ada, running[0], previews)
        assert previews.wait(60)
        wait_for(lambda: redis.keys("i2i:a1111:*"))
        for pattern in (
            "idempotency:{}:*",
            "rate*/{}/*",
            "jobs:of:{}",
            "batches:of:{}",
            "preview:*",
            "outbox:*",
            "gone:*",
        ):
            assert redis.keys("i2i:" + pattern.format(scene.keys["ada"])), pattern
        assert scene.on_disk()

        output = scene.img2img("forget", "--key", scene.keys["ada"])

        # It sees the job cancelled, or deleted, or not even the record of the deletion.
        interrupted = web_ui.result(60)
        assert interrupted.status_code in (404, 410) or json.loads(interrupted.json()["info"])["interrupted"]
        assert stream.result(60) in ("cancelled", "gone")
    counts = {name: int(number) for number, name in re.findall(r"^ *(\d+) (.+) deleted$", output, re.MULTILINE)}
    assert counts == {
        "jobs": 3 + 8 + 1,
        "uploaded images": 1,
        "pending webhooks of expired jobs": 1,
        "idempotency keys": 1 + 8,
        "rate limit counters": counts["rate limit counters"],
        "records of deleted jobs": 12 + 1 + 2,
    }
    assert counts["rate limit counters"] >= 1
    assert "rewrote the append-only file of Redis" in output

    assert MARKER not in scene.in_redis()
    assert not [key for key in redis.scan_iter() if scene.keys["ada"].encode() in key]
    wait_for(lambda: not scene.on_disk())
    # The worker drops its jobs at the next step, and stores nothing of them.
    wait_for(lambda: not redis.keys("rq:executions:*") and not redis.zcard("rq:wip:img2img-tiny"), 60)
    time.sleep(1)
    assert scene.files() == before["files"]
    assert MARKER not in scene.in_redis()
    assert not scene.on_disk()
    assert MARKER not in (scene.folder / "log").read_text()
    assert queue.job_store.active_ids() == []

    assert jobs_of(bob) == before["jobs"]
    assert bob.get(f"/jobs/{bobs_job}/result").status_code == 200
    assert bob.post("/img2img?dry_run=true", json={"image": bobs_upload}).status_code == 200
    assert redis.zcard("i2i:outbox") == 1
    again = submit(bob, encoded(gradient(64, 64, blue=10)), "key-bob", prompt="public", negative_prompt="public",
                   webhook=f"{scene.receiver.url}public", **SIZE)  # fmt: skip
    assert again == bobs_job, "the idempotency key is still known"

    for job_id in (*running, expired, deleted):
        assert ada.get(f"/jobs/{job_id}").status_code == 404
    assert not re.findall(r"^ *[1-9]\d* ", scene.img2img("forget", "--key", scene.keys["ada"]), re.MULTILINE)
    fresh = submit(ada, marked_image(20), "key-ada", prompt="new", **SIZE)
    assert ended(ada, fresh)["status"] == JobStatus.SUCCEEDED


def jobs_of(client: httpx.Client) -> list[dict[str, Any]]:
    """Return the jobs, without the webhooks, whose attempts go on."""
    return [job | {"webhook": None} for job in client.get("/jobs").json()["jobs"]]


def follow(client: httpx.Client, job_id: str, previews: threading.Event) -> str:
    """Read the events of a job until its end. Returns the name of the last one."""
    name = ""
    with client.stream("GET", f"/jobs/{job_id}/events?preview=true") as response:
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if name == "preview":
                previews.set()
    return name


def test_deleting_a_running_job_leaves_no_image(scene: Scene) -> None:
    ada = scene.clients["ada"]
    before = scene.files()
    job_id = submit(ada, marked_image(99), prompt=MARKER, **LONG)
    wait_for(lambda: ada.get(f"/jobs/{job_id}").json()["progress"]["step"] > 0, 60)
    assert ada.delete(f"/jobs/{job_id}").status_code == 204
    assert scene.files() == before
    wait_for(lambda: not scene.redis.keys("rq:executions:*"), 60)
    assert scene.files() == before
    assert MARKER not in scene.in_redis()


def test_nothing_that_leaves_the_service_names_an_input(scene: Scene) -> None:
    """A hash gives access to the image for its owner, so it goes to the owner alone, as a part of the job."""
    bob, queue = scene.clients["bob"], JobQueue(scene.redis)
    image, url = encoded(gradient(64, 64, blue=200)), f"{scene.receiver.url}hashes"
    uploaded = bob.post("/images", files={"image": image}).json()["sha256"]
    mask = base64.b64encode(encoded(gradient(64, 64, blue=201))).decode()
    body = {"image": uploaded, "mask": mask, "webhook": url, "prompt": "public", **SIZE}
    done = bob.post("/img2img", json=body).json()["id"]
    job = ended(bob, done)
    hashes = {uploaded, job["request"]["image"], job["request"]["region"]["mask"]}
    assert len(hashes) == 3

    # Jobs that fail because of an input: it is damaged, or gone.
    webhook = Webhook.model_validate({"url": url})
    damaged, gone = sha256(b"damaged").hexdigest(), sha256(b"gone").hexdigest()
    usual = os.umask(UMASK)
    ObjectStore((scene.data / "store").as_uri()).put(input_key(damaged), b"damaged")
    os.umask(usual)
    options = JobOptions(owner=scene.keys["bob"], webhook=webhook)
    failed = [queue.submit(make_spec(model="tiny", image=one), options).id for one in (damaged, gone)]
    hashes |= {damaged, gone}
    for job_id in failed:
        assert bob.get(f"/jobs/{job_id}?wait=60").json()["status"] == "failed"

    web_ui = {"init_images": [base64.b64encode(image).decode()], "mask": mask, "steps": 2, "width": 64, "height": 64}
    edited = {"image": ("a.png", image, "image/png")}
    outgoing = {
        "sdapi": bob.post("/sdapi/v1/img2img", json=web_ui).raise_for_status().content,
        "progress": bob.get("/sdapi/v1/progress").raise_for_status().content,
        "v1": bob.post("/v1/images/edits", files=edited, data={"prompt": "x", "size": "64x64"}).content,
        "metadata": json.dumps(Image.open(io.BytesIO(bob.get(f"/jobs/{done}/result").content)).text).encode(),
        "metrics": b"".join(bob.get(path).content for path in ("/metrics", "/models", "/readyz")),
    }
    assert json.loads(outgoing["v1"])["data"]
    assert "public" in outgoing["metadata"].decode()
    assert bob.delete(f"/images/{uploaded}").status_code == 204
    # Inputs of the jobs of the compatible APIs.
    hashes |= {one for listed in bob.get("/jobs?limit=20").json()["jobs"] for one in hashes_in(listed["request"])}
    for job_id in (done, *failed):
        wait_for(lambda job_id=job_id: scene.receiver.of(job_id), 60)
    time.sleep(1)  # spans are sent every 0.2 s
    outgoing["webhooks"] = b"".join(received.body for received in scene.receiver.got)
    outgoing["traces"] = scene.collector.raw
    outgoing["logs"] = (scene.folder / "log").read_bytes()
    assert len(hashes) > 5
    assert b"images/{sha256}" in outgoing["logs"]
    assert b"input_damaged" in outgoing["webhooks"]
    assert outgoing["traces"]
    found = {(name, one) for name, content in outgoing.items() for one in hashes if one.encode() in content}
    assert found == set()


def hashes_in(value: object) -> set[str]:
    return set(re.findall(r"\b[0-9a-f]{64}\b", json.dumps(value)))


def test_data_is_readable_by_the_user_only(scene: Scene) -> None:
    upload = scene.clients["bob"].post("/images", files={"image": encoded(gradient(64, 64))})
    assert upload.status_code == 201
    found = {
        (str(path.relative_to(scene.data)), f"{S_IMODE(mode):o}", S_ISDIR(mode))
        for path in (scene.data, *scene.data.rglob("*"))
        for mode in [path.lstat().st_mode]
    }
    assert {one for one in found if one[1] != ("700" if one[2] else "600")} == set()
    names = {name for name, _, _ in found}
    assert {"redis", "redis.sock", "store", "serve.lock", "webhook-secret", "redis/redis.log"} <= names


def test_wrong_key_id_is_reported(scene: Scene) -> None:
    done = img2img(scene.folder, "forget", "--key", "i2i_secret", "--data-dir", str(scene.data))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no id of a key" in done.stderr
