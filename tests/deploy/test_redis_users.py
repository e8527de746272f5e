"""Permissions of the Redis users of the Compose deployment: each process can do its work, and nothing else."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.embedded_redis import is_redis_ready, redis_command
from img2img.app.supervisor.supervisor import free_port
from img2img.blobs import ObjectStore
from img2img.domain.api_key import Scope
from img2img.domain.blob_keys import result_key
from img2img.domain.job import JobOptions
from img2img.erasure import Eraser
from img2img.redis import keys
from img2img.redis.api_keys import ApiKeys
from img2img.redis.append_only_file import AppendOnlyFile
from img2img.redis.job_queue import JobQueue
from img2img.redis.keys import API_KEYS, EXPIRING_JOBS
from img2img.redis.model_registry import ModelRegistry
from img2img.redis.owner_data import OwnerData
from img2img.settings import embedded_redis_socket
from tests.support.images import encoded, gradient
from tests.support.memory_store import MemoryStore
from tests.support.processes import MODEL, Forked, wait_for
from tests.support.servers import http_server
from tests.support.specs import make_spec
from tests.support.webhook_receivers import receiving

RULES = Path(__file__).parents[2] / "docker" / "redis"
# Users of Redis and the processes of the key table that log in as them.
USERS = {"api": None, "worker": keys.WORKER, "webhooks": keys.WEBHOOKS}
# For the tests, which read the ACL log.
ROOT = "user root on nopass ~* &* +@all\n"


class RestrictedRedis:
    """A Redis server with the users that the Compose deployment sets up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        secrets = folder / "secrets"
        for name in ("api", "worker", "webhooks", "redis"):
            (secrets / name).mkdir(parents=True)
        subprocess.run([RULES / "setup", secrets], check=True)
        with (secrets / "redis" / "users.acl").open("a") as rules:
            rules.write(ROOT)
        self._secrets = secrets
        self._command = [*redis_command(folder), "--aclfile", str(secrets / "redis" / "users.acl")]
        self._root_url = f"unix://root:any@{embedded_redis_socket(folder)}"
        self.root = Redis.from_url(self._root_url)
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        wait_for(lambda: is_redis_ready(self._root_url))

    def restart(self) -> None:
        self._process.terminate()
        self._process.wait()
        self.start()

    def url(self, user: str) -> str:
        """Return the URL of a user, with the socket in place of the host."""
        url = (self._secrets / user / "img2img_redis_url").read_text()
        return url.replace("redis://", "unix://").replace("redis:6379/0", str(embedded_redis_socket(self.folder)))

    def assert_no_required_command_was_denied(self) -> None:
        """RQ works without INFO, and Redis 6 cannot permit a part of CLIENT."""
        assert {entry["object"] for entry in self.root.acl_log()} <= {"info", "client"}

    def stop(self) -> None:
        self.root.close()
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def restricted() -> Iterator[RestrictedRedis]:
    # A short path, because it contains a unix socket.
    with TemporaryDirectory(prefix="i2i-") as folder:
        restricted = RestrictedRedis(Path(folder))
        try:
            yield restricted
        finally:
            restricted.stop()


@contextmanager
def processes(restricted: RestrictedRedis, model: Path, settings: ApiSettings) -> Iterator[None]:
    """Run a worker and a webhook dispatcher, each with its Redis user."""
    shared = {"IMG2IMG_DATA_DIR": str(restricted.folder), "IMG2IMG_MODEL": str(model)}
    log = restricted.folder / "img2img.worker.log"
    worker_settings = {
        "IMG2IMG_REDIS_URL": restricted.url("worker"),
        "IMG2IMG_DEVICE": "cpu",
        "IMG2IMG_LEASE_S": "3",
        "IMG2IMG_LIVE_FILE": str(restricted.folder / "live"),
    }
    worker = Forked(shared | worker_settings, log)
    dispatcher = subprocess.Popen(
        [sys.executable, "-m", "img2img.app.webhooks"],
        env=settings.as_environment() | {"IMG2IMG_REDIS_URL": restricted.url("webhooks")},
    )
    try:
        yield
    except BaseException:
        sys.stderr.write(log.read_text())
        raise
    finally:
        os.kill(worker.pid, 9)
        worker.wait()
        dispatcher.kill()
        dispatcher.wait()


def test_job_completes_with_the_permissions_of_each_process(restricted: RestrictedRedis, tiny_model: Path) -> None:
    settings = ApiSettings(
        _env_file=None,
        data_dir=restricted.folder,
        redis_url=restricted.url("api"),
        model=MODEL,
        port=free_port(),
        keys="required",
        rate_limit="100000/minute",
        max_queued=10,
        max_queued_per_key=10,
        webhook_secret="whsec_" + "YWJj" * 8,
        webhook_allow_private=True,
    )
    secret, _ = ApiKeys(Redis.from_url(restricted.url("api"))).create("test", [Scope.ADMIN])
    image = encoded(gradient(32, 32))
    models = ModelRegistry(restricted.root)
    with (
        receiving() as receiver,
        http_server(settings) as url,
        processes(restricted, tiny_model, settings),
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}, timeout=60) as http,
    ):

        def submit(**fields: object) -> str:
            response = http.post("/img2img", files={"image": image}, data={"num_inference_steps": 4} | fields)
            assert response.status_code == 202, response.text
            return str(response.json()["id"])

        wait_for(lambda: models.live().get(MODEL), 90)
        modified_at = (restricted.folder / "live").stat().st_mtime
        job_id = submit(webhook=receiver.url, deadline_s=600)
        with http.stream("GET", f"/jobs/{job_id}/events?preview=true") as events:
            for line in events.iter_lines():
                restricted.assert_no_required_command_was_denied()
                if line == "event: succeeded":
                    break
            else:
                raise AssertionError("the job has not succeeded")
        assert http.get(f"/jobs/{job_id}/result").content.startswith(b"\x89PNG")
        long = submit(num_inference_steps=150, strength=1, num_images=8)
        assert http.post(f"/jobs/{long}/cancel").status_code == 200
        assert receiver.wait(1)[0].headers["webhook-id"] == job_id
        wait_for(lambda: http.get(f"/jobs/{job_id}").json()["webhook"]["delivery"]["status"] == "delivered")
        assert http.get("/jobs").status_code == 200
        assert http.delete(f"/jobs/{job_id}").status_code == 204
        assert ObjectStore(settings.resolved_store_url).get(result_key(job_id, 0)) is None
        # The worker has also stopped the cancelled job.
        wait_for(lambda: not restricted.root.zcard("rq:wip:img2img-tiny"))
        wait_for(lambda: (restricted.folder / "live").stat().st_mtime > modified_at)
        restricted.root.zadd(EXPIRING_JOBS, {long: 1})
        assert restricted.root.keys("i2i:inputs*")
        wait_for(lambda: http.get(f"/jobs/{long}").status_code == 410 and not restricted.root.keys("i2i:inputs*"))
    restricted.assert_no_required_command_was_denied()


Command = Callable[[Redis], object]
DENIED_TO_ALL: dict[str, Command] = {
    "flushes all data": lambda redis: redis.flushall(),
    "lists all keys": lambda redis: redis.keys("*"),
    "reads the configuration": lambda redis: redis.config_get("*"),
    "writes the configuration": lambda redis: redis.config_set("dir", "/tmp"),
    "monitors commands": lambda redis: redis.execute_command("MONITOR"),
    "creates users": lambda redis: redis.acl_setuser("me", enabled=True, nopass=True),
    "loads modules": lambda redis: redis.execute_command("MODULE", "LOAD", "/tmp/x.so"),
    "becomes a replica": lambda redis: redis.replicaof("127.0.0.1", 1),
    "shuts Redis down": lambda redis: redis.execute_command("SHUTDOWN", "NOSAVE"),
    "flushes scripts": lambda redis: redis.script_flush(),
    "writes other keys": lambda redis: redis.set("other", 1),
    "writes other keys in a script": lambda redis: redis.eval("return redis.call('SET', 'other', 1)", 0),
    "publishes on other channels": lambda redis: redis.publish("other", "x"),
}
DENIED_TO_WORKERS: dict[str, Command] = {
    "rewrites the append-only file": lambda redis: redis.bgrewriteaof(),
    "reads the state of Redis": lambda redis: redis.info(),
    "reads API keys": lambda redis: redis.hgetall(API_KEYS),
    "creates an API key": lambda redis: redis.hset(API_KEYS, "id", "{}"),
    "resets a rate limit": lambda redis: redis.delete("i2i:rate:x"),
}
DENIED_TO_WEBHOOKS: dict[str, Command] = {
    "queues a job": lambda redis: redis.rpush("rq:queue:img2img-demo", "x"),
    "registers a model": lambda redis: redis.hset("i2i:models", "x", "{}"),
}


def denied(command: Command, redis: Redis) -> str:
    """Return the message of the refused command."""
    with pytest.raises(ResponseError) as refusal:
        command(redis)
    return str(refusal.value).lower()


@pytest.mark.parametrize("action", DENIED_TO_ALL)
@pytest.mark.parametrize("user", ["api", "worker", "webhooks"])
def test_dangerous_command_is_denied_to_every_user(restricted: RestrictedRedis, user: str, action: str) -> None:
    with Redis.from_url(restricted.url(user)) as redis:
        refusal = denied(DENIED_TO_ALL[action], redis)
    # Redis 7 denies MODULE to everybody.
    assert "no permission" in refusal or "can't access" in refusal or "command not allowed" in refusal
    assert not restricted.root.exists("other")


@pytest.mark.parametrize("action", DENIED_TO_WORKERS)
@pytest.mark.parametrize("user", ["worker", "webhooks"])
def test_command_of_the_api_server_is_denied_to_other_users(
    restricted: RestrictedRedis, user: str, action: str
) -> None:
    with Redis.from_url(restricted.url(user)) as redis:
        assert "no permission" in denied(DENIED_TO_WORKERS[action], redis)


@pytest.mark.parametrize("action", DENIED_TO_WEBHOOKS)
def test_command_is_denied_to_the_webhook_dispatcher(restricted: RestrictedRedis, action: str) -> None:
    with Redis.from_url(restricted.url("webhooks")) as redis:
        assert "no permission" in denied(DENIED_TO_WEBHOOKS[action], redis)


def test_api_server_forgets_an_owner_and_rewrites_the_append_only_file(restricted: RestrictedRedis) -> None:
    with Redis.from_url(restricted.url("api")) as redis:
        queue = JobQueue(redis)
        queue.submit(make_spec(), JobOptions(owner="a" * 16))
        assert Eraser(queue, MemoryStore()).forget_owner(OwnerData(redis, "a" * 16)).jobs == 1
        assert AppendOnlyFile(redis).rewrite()


def test_only_ping_needs_no_password(restricted: RestrictedRedis) -> None:
    socket = embedded_redis_socket(restricted.folder)
    with Redis.from_url(f"unix://{socket}") as anonymous, pytest.raises(AuthenticationError):
        anonymous.ping()
    with Redis.from_url(f"unix://api:wrong@{socket}") as wrong, pytest.raises(AuthenticationError):
        wrong.ping()
    with Redis.from_url(f"unix://health:any@{socket}") as health:
        assert health.ping()
        assert "no permission" in denied(lambda redis: redis.get("i2i:jobs"), health)


def test_redis_keeps_transactions_across_a_restart(restricted: RestrictedRedis) -> None:
    """Redis 7 reads its append-only file as the default user, and skips commands that this user may not run."""
    [default] = [rules for rules in restricted.root.acl_list() if rules.startswith("user default ")]
    assert {"off", "~*", "+@all"} <= set(default.split())
    with Redis.from_url(restricted.url("api")) as redis, redis.pipeline(transaction=True) as pipe:
        pipe.set("i2i:first", 1)
        pipe.set("i2i:second", 2)
        pipe.execute()
    restricted.restart()
    assert restricted.root.mget("i2i:first", "i2i:second") == [b"1", b"2"]


def key_patterns(user: str) -> list[str]:
    [rules] = [line for line in (RULES / "users.acl").read_text().splitlines() if line.startswith(f"user {user} ")]
    return [rule[1:] for rule in rules.split() if rule.startswith("~")]


@pytest.mark.parametrize("name", [name for name, key in vars(keys).items() if isinstance(key, keys.Key)])
def test_user_permissions_match_the_key_table(name: str) -> None:
    key = getattr(keys, name)
    example = re.sub(r"\{\w+\}", "x", key)
    users = {user for user in USERS if any(fnmatchcase(example, pattern) for pattern in key_patterns(user))}
    expected = {"api", *(user for user, process in USERS.items() if process in key.processes)}
    assert users == ({"api"} if key.type == "channel" else expected)


def test_setup_keeps_existing_passwords(restricted: RestrictedRedis) -> None:
    before = {user: restricted.url(user) for user in ("api", "worker", "webhooks")}
    subprocess.run([RULES / "setup", restricted.folder / "secrets"], check=True)
    assert {user: restricted.url(user) for user in before} == before
    assert len(set(before.values())) == 3
    for user in before:
        assert oct((restricted.folder / "secrets" / user / "img2img_redis_url").stat().st_mode)[-3:] == "600"
