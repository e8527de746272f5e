"""`img2img models` as a process, and the same methods of the clients, against an API server with a fake worker."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from img2img import Client
from img2img.client import InvalidRequest, JobNotFound, WaitTimeout
from tests.support.blocking_client import BlockingAsyncClient
from tests.support.cli_command import img2img, one_line
from tests.support.model_hub import model_hub
from tests.support.model_reports import BROKEN, WORKER, definitions, following_worker, report

ROW = ["demo", "(default)", "loaded", "2.5", "GB", "img2img", "64", "to", "256", "by", "8", "0", "1", "0"]


@pytest.fixture
def url(http: httpx.Client) -> str:
    return str(http.base_url)


@pytest.fixture
def worker(http: httpx.Client, redis: Redis) -> Iterator[None]:
    with following_worker(redis):
        yield


@pytest.fixture(params=[Client, BlockingAsyncClient], ids=["sync", "async"])
def api(request: pytest.FixtureRequest, url: str) -> Iterator[Client]:
    with request.param(url) as client:
        yield client


@pytest.mark.usefixtures("worker")
def test_add_waits_until_a_worker_serves_the_model(tmp_path: Path, url: str, redis: Redis) -> None:
    options = ("--lora", "ink=org/ink", "--set", "steps=20", "--set", 'vae={"source": "org/vae"}', "--url", url)
    done = img2img(tmp_path, "models", "add", "org/photo", "org/photo", *options)
    assert (done.returncode, done.stdout) == (0, "org/photo: loaded: 1 worker has it in memory.\n")
    photo = definitions(redis)["org/photo"]
    assert (photo.source, photo.steps, photo.vae.source if photo.vae else "") == ("org/photo", 20, "org/vae")
    assert photo.loras["ink"].source == "org/ink"
    assert img2img(tmp_path, "models", "add-lora", "org/photo", "pen", "org/pen", "--url", url).returncode == 0
    assert img2img(tmp_path, "models", "remove-lora", "org/photo", "ink", "--url", url).returncode == 0
    shown = json.loads(img2img(tmp_path, "models", "show", "org/photo", "--json", "--url", url).stdout)
    assert shown["change"]["loras"] == {"pen": {"source": "org/pen", **NO_PARTS}, "ink": None}
    assert "state: loaded" in img2img(tmp_path, "models", "show", "org/photo", "--url", url).stdout
    removed = img2img(tmp_path, "models", "remove", "org/photo", "--url", url)
    assert removed.stdout == "org/photo: removed: Requests for it are rejected.\n"
    assert list(definitions(redis)) == ["demo"]
    assert img2img(tmp_path, "models", "reset", "org/photo", "--url", url).returncode == 0


NO_PARTS = dict.fromkeys(("revision", "subfolder", "weight_name"))


@pytest.mark.usefixtures("worker")
def test_list_shows_states_sizes_and_failures(tmp_path: Path, url: str) -> None:
    bad = img2img(tmp_path, "models", "add", "bad", "org/bad", "--url", url)
    assert (bad.returncode, bad.stdout) == (1, "bad: failed: test-worker: org/bad has only pickle files\n")
    header, demo, failed = img2img(tmp_path, "models", "list", "--url", url).stdout.splitlines()
    assert header.split() == ["model", "state", "memory", "tasks", "sizes", "LoRAs", "workers", "queued"]
    assert demo.split() == ROW
    assert failed.split(maxsplit=2)[:2] == ["bad", "failed"]
    lines = img2img(tmp_path, "models", "list", "--json", "--url", url).stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["demo", "bad"]


@pytest.mark.usefixtures("worker")
def test_add_lora_says_why_a_lora_was_left_out(tmp_path: Path, url: str, redis: Redis) -> None:
    added = img2img(tmp_path, "models", "add-lora", "demo", "broken", "/srv/broken.safetensors", "--url", url)
    assert one_line(added) == f"img2img: LoRA broken was not added to demo: {BROKEN}"
    after = img2img(tmp_path, "models", "add-lora", "demo", "My Style (v2)", "/srv/style.safetensors", "--url", url)
    assert (after.returncode, after.stdout) == (0, "demo: loaded: 1 worker has it in memory.\n")
    listed = img2img(tmp_path, "models", "list", "--url", url)
    assert listed.stdout.splitlines()[1].split()[-3:] == ["1", "1", "0"]
    assert listed.stderr == f"img2img: {WORKER}: the LoRA broken is left out of the model demo: {BROKEN}\n"
    named = img2img(tmp_path, "models", "add-lora", "demo", "Café", "/srv/style.safetensors", "--url", url)
    assert "has letters, digits, spaces and . _ - ( ) + only, such as 'Caf'; got 'Café'" in one_line(named, 2)


def test_wrong_usage_is_refused(tmp_path: Path, url: str) -> None:
    misplaced = img2img(tmp_path, "models", "--json", "list", "--url", url)
    assert one_line(misplaced, 2) == "img2img: --json comes after the command: img2img models list --json"
    assert "expected NAME=VALUE" in one_line(img2img(tmp_path, "models", "add", "a", "b", "--lora", "x"), 2)
    refused = img2img(tmp_path, "models", "add", "a", "https://example.org/a", "--url", url)
    assert "source: Input should be a path or a hub id such as org/name, not a URL" in one_line(refused)
    assert "There is no model nope" in one_line(img2img(tmp_path, "models", "show", "nope", "--url", url))


def test_path_of_this_machine_becomes_absolute(tmp_path: Path, url: str, redis: Redis) -> None:
    (tmp_path / "ink.safetensors").touch()
    options = ("--lora", "ink=ink.safetensors", "--no-wait", "--json", "--url", url)
    done = img2img(tmp_path, "models", "add", "photo", "./photo", *options)
    assert json.loads(done.stdout)["state"] == "waiting"
    photo = definitions(redis)["photo"]
    assert (photo.source, photo.loras["ink"].source) == (f"{tmp_path}/photo", f"{tmp_path}/ink.safetensors")


def test_client_changes_models(api: Client, redis: Redis) -> None:
    added = api.put_model("org/photo", {"source": "org/photo", "steps": 20})
    assert (added.name, added.state, added.is_served) == ("org/photo", "waiting", False)
    with pytest.raises(WaitTimeout, match="org/photo is waiting after 0 s"):
        api.wait_for_model("org/photo", timeout_s=0)
    api.put_lora("org/photo", "ink", "org/ink")
    report(redis, "demo", "org/photo")
    photo = api.wait_for_model("org/photo")
    assert photo.is_served
    assert photo.card is not None
    assert photo.card.loras == ("ink",)
    changed = api.delete_lora("org/photo", "ink").change
    assert changed is not None
    assert (changed["loras"], changed["revision"]) == ({"ink": None}, 3)
    assert api.delete_model("org/photo").state == "removed"
    with pytest.raises(JobNotFound, match="There is no model org/photo"):
        api.get_model("org/photo")
    api.reset_model("org/photo")
    assert [model.name for model in api.model_page().models] == ["demo"]
    with pytest.raises(InvalidRequest) as rejected:
        api.put_model("photo", {"source": "org/photo", "steps": 0})
    assert rejected.value.errors[0].field == "steps"


def test_pull_downloads_into_the_cache(tmp_path: Path, model_folder: Path) -> None:
    with model_hub("org/tiny", model_folder) as hub:
        cache = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache")}
        done = img2img(tmp_path, "models", "pull", "org/tiny", **cache)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("org/tiny: 0.01 GB in ")
        assert (Path(done.stdout.split(" in ")[1].strip()) / "model_index.json").is_file()
        missing = img2img(tmp_path, "models", "pull", "org/nope", **cache)
        assert (missing.returncode, "no repository of that name" in missing.stderr) == (1, True)
        file = img2img(tmp_path, "models", "pull", "org/tiny/vae/diffusion_pytorch_model.safetensors", **cache)
        assert file.stdout.strip().endswith("vae/diffusion_pytorch_model.safetensors")
