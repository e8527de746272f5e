"""Choice of the device of a worker. The machine that runs the tests has no accelerator, or several."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from img2img.worker import devices
from img2img.worker.errors import StartupError


def with_accelerator(monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int = 1) -> None:
    """Let PyTorch report accelerators of a kind."""
    found = torch.device(kind) if kind else None
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: found is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)

    def module_of(device: torch.device) -> Any:
        return SimpleNamespace(is_available=lambda: device.type == kind, device_count=lambda: count)

    monkeypatch.setattr(devices, "_module", module_of)


@pytest.mark.parametrize(
    ("found", "chosen"), [("cuda", "cuda"), ("xpu", "xpu"), ("mps", "mps"), (None, "cpu"), ("mtia", "cpu")]
)
def test_auto_takes_the_accelerator(found: str | None, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerator(monkeypatch, found)
    assert devices.choose_device("auto") == chosen


@pytest.mark.parametrize("setting", ["cuda", "cuda:0", "cuda:1", "cpu"])
def test_devices_that_there_are(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerator(monkeypatch, "cuda", count=2)
    assert devices.choose_device(setting) == setting


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cuda:2", "there is no cuda:2; PyTorch finds 2 cuda devices"),
        ("xpu", "finds no xpu device; see `img2img doctor`, or set IMG2IMG_DEVICE=auto"),
        ("gpu", "'gpu' is not a device; choose cpu, cuda, cuda:1, xpu, mps or auto"),
        ("meta", "'meta' is not a device"),
        ("", "'' is not a device"),
    ],
)
def test_other_devices_are_refused(setting: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_accelerator(monkeypatch, "cuda", count=2)
    with pytest.raises(StartupError) as raised:
        devices.choose_device(setting)
    assert message in str(raised.value)


def test_dtypes_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (major, minor) < (14, 0))
    expected = {
        ("float16", "cuda:1"): "float16",
        ("bfloat16", "xpu"): "bfloat16",
        ("float16", "mps"): "float16",
        ("bfloat16", "mps"): "float32",
        ("bfloat16", "cpu"): "float32",
    }
    assert {key: devices.default_dtype(*key) for key in expected} == expected
    assert devices.why_no_dtype("bfloat16", "mps") == "bfloat16 on mps needs macOS 14"
    assert devices.why_no_dtype("bfloat16", "cpu") is None


def test_memory_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(
        recommended_max_memory=lambda: 20, driver_allocated_memory=lambda: 8, current_allocated_memory=lambda: 5
    )
    monkeypatch.setattr(devices, "_module", lambda _device: module)
    assert devices.device_memory("mps") == {"allocated": 5, "reserved": 8, "free": 12, "total": 20}


def test_memory_of_a_device_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.device_memory("cpu") == {}
    assert devices.memory_in_words("cpu").startswith("this machine has ")
    module = SimpleNamespace(
        is_initialized=lambda: True,
        mem_get_info=lambda _device: (4e9, 16e9),
        memory_allocated=lambda _device: 1,
        memory_reserved=lambda _device: 2,
        max_memory_allocated=lambda _device: 3,
    )
    monkeypatch.setattr(devices, "_module", lambda _device: module)
    assert devices.memory_in_words("xpu:0") == "xpu:0 has 16.0 GB, 4.0 GB of it free"


def test_rocm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "AMD Instinct MI300X")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert devices.describe_device("cuda") == "cuda (AMD Instinct MI300X, ROCm 6.4)"
    assert devices.describe_device("cpu") == f"cpu ({torch.get_num_threads()} threads)"
