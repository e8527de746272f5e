"""Models from the hub: the true cause within seconds, and the only variant is used."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from tests.support.model_hub import model_hub
from tests.support.models.single_files import original_weights
from tests.support.models.tiny_models import tiny_sd

# Loads each model and prints its result, because huggingface_hub reads its environment once.
SCRIPT = """
import json, sys, time
from img2img.worker.errors import StartupError
from img2img.domain.model_config import ModelConfig
from img2img.worker.pipelines.model import load_model
for given in json.loads(sys.argv[1]):
    started = time.monotonic()
    try:
        load_model(ModelConfig(name="m", **given), device="cpu")
        result = "loaded"
    except StartupError as error:
        result = str(error)
    print(json.dumps([result, time.monotonic() - started]))
"""


def load(cache: Path, *given: dict[str, object], **environment: str) -> list[str]:
    """Return the message of each model, or `loaded`."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(given)]
    env = {**os.environ, "HF_HOME": str(cache), **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for message, seconds in results:
        assert seconds < 20, message
        assert len(message) < 300
    return [message for message, _ in results]


def test_causes(tmp_path: Path, model_folder: Path) -> None:
    pickles = Path(shutil.copytree(model_folder, tmp_path / "pickles"))
    (pickles / "unet/diffusion_pytorch_model.safetensors").rename(pickles / "unet/diffusion_pytorch_model.bin")
    ip = {"source": "org/nope", "weight_name": "a.safetensors"}
    with model_hub("org/tiny", pickles) as hub:
        messages = load(
            tmp_path / "cache",
            {"source": "org/nope"},
            {"source": "org/tiny", "revision": "v9"},
            {"source": "not a hub id"},
            {"source": "org/tiny"},
            {"source": str(model_folder), "controlnets": {"canny": "org/tiny"}},
            {"source": str(model_folder), "edit": "org/nope"},
            {"source": str(model_folder), "ip_adapter": ip},
            {"source": str(model_folder), "loras": {"ink": "org/tiny"}},
            HF_ENDPOINT=hub,
        )
        unknown = (
            f"there is no folder org/nope, and no repository of that name at {hub}; check the name; "
            "set HF_TOKEN if it is private"
        )
    for message, expected in zip(
        messages,
        (
            f"cannot load model 'm': {unknown}",
            "org/tiny has no revision v9",
            "'not a hub id' is neither an existing folder nor a hub id such as org/name",
            "org/tiny/unet has only pickle files (diffusion_pytorch_model.bin)",
            "ControlNet canny: org/tiny has no config.json; check `subfolder`",
            unknown,
            f"IP-Adapter: {unknown}",
            "LoRA 'ink': org/tiny has no file pytorch_lora_weights.safetensors; check `weight_name`",
        ),
        strict=True,
    ):
        assert expected in message


def test_gated_repository(tmp_path: Path, model_folder: Path) -> None:
    with model_hub("org/tiny", model_folder, is_gated=True) as hub:
        [message] = load(tmp_path, {"source": "org/tiny"}, HF_ENDPOINT=hub)
        assert f"access to org/tiny is restricted: accept its terms at {hub}/org/tiny, and set HF_TOKEN" in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ((503, "down"), "model_index.json is not in the cache {cache}/hub, and {hub} answered with 503"),
        (
            (401, "Invalid credentials in Authorization header"),
            "no access to org/tiny: set HF_TOKEN to a token that may read {hub}/org/tiny (the hub answered 401)",
        ),
    ],
)
def test_hub_that_refuses(tmp_path: Path, model_folder: Path, error: tuple[int, str], message: str) -> None:
    with model_hub("org/tiny", model_folder, error=error) as hub:
        [found] = load(tmp_path, {"source": "org/tiny"}, HF_ENDPOINT=hub, HF_TOKEN="hf_invalid")
    assert message.format(hub=hub, cache=tmp_path) in found


@pytest.fixture
def unreachable() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_only_variant_is_downloaded_and_served_without_the_hub(
    tmp_path: Path, model_folder: Path, unreachable: str
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "fp16"))
    for file in list(folder.rglob("*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    cache = tmp_path / "cache"
    tiny = {"source": "org/tiny"}
    nope = {"source": "org/nope"}
    with model_hub("org/tiny", folder) as hub:
        assert load(cache, tiny, HF_ENDPOINT=hub) == ["loaded"]
    downloaded, missing = load(cache, tiny, nope, HF_ENDPOINT=unreachable)
    assert downloaded == "loaded"
    assert "org/nope: model_index.json is not in the cache" in missing
    assert f"{unreachable} cannot be reached" in missing
    [weights] = (cache / "hub").rglob("unet/*.safetensors")
    loaded, missing = load(cache, tiny, nope, HF_HUB_OFFLINE="1")
    assert loaded == "loaded"
    assert missing.endswith(", and HF_HUB_OFFLINE is set")
    weights.unlink()
    [incomplete] = load(cache, tiny, HF_HUB_OFFLINE="1")
    assert "unet has no weights (*.safetensors): the download is incomplete" in incomplete


def test_hub_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        [message] = load(tmp_path, {"source": "org/tiny"}, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "cannot be reached" in message
    assert time.monotonic() - started < 120


def test_file_of_a_repository(tmp_path: Path) -> None:
    """A file takes the tokenizer and the text encoder from another repository, then both from the cache."""
    folder = tiny_sd(tmp_path / "repository")
    weights = original_weights(DiffusionPipeline.from_pretrained(folder))
    kept = {key: value.contiguous() for key, value in weights.items() if not key.startswith("cond_stage_model.")}
    (folder / "files").mkdir()
    save_file(kept, folder / "files" / "photo.safetensors")
    cache, source = tmp_path / "cache", "org/tiny/files/photo.safetensors"
    given = {"source": source, "config": {"source": "org/tiny"}}
    with model_hub("org/tiny", folder) as hub:
        messages = load(
            cache, given, {"source": "org/tiny/none.safetensors"}, {"source": "org/tiny/x.ckpt"}, HF_ENDPOINT=hub
        )
        assert messages[0] == "loaded"
        assert "org/tiny has no file none.safetensors" in messages[1]
        assert "x.ckpt is a pickle" in messages[2]
        assert load(cache, given, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1") == ["loaded"]
    downloaded = {str(path).partition("/snapshots/")[2].partition("/")[2] for path in cache.rglob("*.safetensors")}
    assert downloaded == {"files/photo.safetensors", "text_encoder/model.safetensors"}
