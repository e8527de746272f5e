"""`img2img doctor`: one line for each part, and exit code 2 if one of them prevents the start."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from img2img.app.cli.doctor import _memory_of, _model
from img2img.app.supervisor.supervisor import free_port
from tests.e2e.test_cli import serving
from tests.support.cli_command import img2img

# Not the fake worker of other tests of the command: this one asks PyTorch.
REAL = {"PYTHONPATH": ""}


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="i2i-") as name:
        yield Path(name)


def doctor(folder: Path, code: int = 0, **settings: str) -> dict[str, tuple[str, str]]:
    """Run the command; return level and text by name."""
    done = img2img(folder, "doctor", **({"IMG2IMG_PORT": str(free_port())} | REAL | settings))
    assert done.returncode == code, done.stdout + done.stderr
    lines = [re.fullmatch(r"(\S+) +(\S+) +(.+)", line) for line in done.stdout.splitlines()]
    return {line[2]: (line[1], line[3]) for line in lines if line}


def test_healthy_machine(folder: Path) -> None:
    found = doctor(folder)
    assert list(found)[:2] == ["img2img", "PyTorch"]
    assert {"memory", "data", "Redis", "address", "model"} <= found.keys()
    assert not [name for name, (level, _) in found.items() if level == "FAULT"]
    assert re.match(r"\d+\.\d+\.\d+\S*, (without CUDA|built for CUDA \d+\.\d+), \d+ CPU threads", found["PyTorch"][1])
    assert re.match(r"(Redis|Valkey) \d+\.\d+\.\d+, /", found["Redis"][1])
    assert found["data"][1].startswith(f"{(folder / 'data').resolve()}, created at the first start; ")
    assert found["model"] == ("ok", "demo, part of this installation; small landscapes and houses only")
    level, text = found["weights"]
    assert level == "ok"
    assert re.fullmatch(r"demo: 0\.\d GB of weights in float32, cpu has \d+\.\d GB free", text)
    # It changes nothing.
    assert list(folder.iterdir()) == []


def test_running_service_is_recognized(folder: Path) -> None:
    with serving(folder) as (_, url):
        found = doctor(folder, IMG2IMG_PORT=url.rpartition(":")[2])
    assert found["address"] == ("ok", f"{url}, the service is ready")
    assert found["Redis"][1].endswith(", running")


def test_every_fault_is_named(folder: Path) -> None:
    settings = {
        "IMG2IMG_REDIS_URL": "redis://:secret@127.0.0.1:1",
        "IMG2IMG_DATA_DIR": "/proc/data",
        "IMG2IMG_MODEL": "./nope",
        "IMG2IMG_HOST": "192.0.2.1",
    }
    expected = {
        "Redis": "redis://***@127.0.0.1:1: ",
        "data": "/proc/data cannot be written",
        "model": "./nope: nope is not a diffusers model: it has no model_index.json",
        "address": "cannot listen on 192.0.2.1 port ",
    }
    if os.access("/proc", os.W_OK):
        (folder / "file").write_text("")
        settings["IMG2IMG_DATA_DIR"] = str(folder / "file")
        expected["data"] = f"{(folder / 'file').resolve()} is not a folder"
    found = doctor(folder, 2, **settings)
    for name, text in expected.items():
        level, reason = found[name]
        assert (level, reason[: len(text)]) == ("FAULT", text)
        assert "secret" not in reason


def test_file_that_is_no_model() -> None:
    level, _, text = _model(__file__, __file__, Path())
    assert (level, text.startswith(f"{__file__}: {__file__} is not a diffusers model")) == ("FAULT", True)


def test_model_in_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(source: str = "org/model") -> tuple[str, str]:
        level, _, text = _model(source, source, Path())
        return level, text

    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert found()[1].startswith("org/model: the first start downloads it to ")
    model = tmp_path / "hub" / "models--org--model"
    (model / "blobs").mkdir(parents=True)
    (model / "blobs" / "abc.incomplete").write_bytes(b"x")
    assert found() == ("note", f"org/model: the download is incomplete, 0.0 GB in {tmp_path / 'hub'}")
    (model / "blobs" / "abc.incomplete").rename(model / "blobs" / "abc")
    (model / "snapshots" / "1").mkdir(parents=True)
    (model / "snapshots" / "1" / "model_index.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert found()[0] == "ok"
    assert found("org/nope") == ("FAULT", f"org/nope: not in {tmp_path / 'hub'}, and HF_HUB_OFFLINE is set")
    assert found("org/model/x/v1.safetensors")[0] == "FAULT"
    (model / "snapshots" / "1" / "x").mkdir()
    (model / "snapshots" / "1" / "x" / "v1.safetensors").touch()
    assert found("org/model/x/v1.safetensors")[0] == "ok"


def test_model_in_one_file(folder: Path) -> None:
    (folder / "photo.safetensors").write_bytes(bytes(10**8))
    found = doctor(folder, 2, IMG2IMG_MODEL="./photo.safetensors")
    assert found["model"] == ("ok", "./photo.safetensors: 0.1 GB")
    level, text = found["weights"]
    assert level == "FAULT"
    assert "photo.safetensors cannot be read as safetensors" in text


def test_model_that_does_not_fit(folder: Path, model_folder: Path) -> None:
    found = doctor(folder, IMG2IMG_MODEL=str(model_folder), IMG2IMG_DEVICE="cpu,cpu")
    assert found["weights"][0] == "ok"
    demo = {"name": "flux", "needed": 34 * 10**9, "dtype": "bfloat16", "offload": "none"}
    level, text = _memory_of(demo, "cuda:0", 24 * 10**9)[::2]
    assert level == "note"
    assert text.startswith(
        "flux: 34.0 GB of weights in bfloat16, cuda:0 has 24.0 GB free: IMG2IMG_MODE=auto offloads it"
    )
    assert _memory_of(demo | {"offload": "group"}, "cuda:0", 24 * 10**9).level == "ok"
    assert "it may not fit" in _memory_of(demo, "cpu", 24 * 10**9).text


@pytest.mark.parametrize(
    ("driver", "text"),
    [("echo 580.65.06", "PyTorch is a CPU build, but NVIDIA driver 580.65.06 is installed: install a CUDA build")],
)
def test_build_of_pytorch_is_compared_with_the_driver(folder: Path, driver: str, text: str) -> None:
    programs = folder / "programs"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{driver}\n")
    (programs / "nvidia-smi").chmod(0o755)
    found = doctor(folder, 2, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    level, reason = found["GPU"]
    assert (level, reason[: len(text)]) == ("FAULT", text)
