"""The devices that IMG2IMG_DEVICE lists, and what differs between their workers."""

import pytest

from img2img.app.supervisor.devices import environment_of, worker_devices
from img2img.app.supervisor.errors import ServeError


@pytest.mark.parametrize(
    ("setting", "devices"),
    [
        ("auto", ["auto"]),
        ("cuda", ["cuda"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:all", ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:2,3", ["cuda:2", "cuda:3"]),
        ("cuda:0, cuda:2", ["cuda:0", "cuda:2"]),
        ("cpu,cpu", ["cpu", "cpu"]),
        ("cuda:all,cpu", ["cuda:0", "cuda:1", "cuda:2", "cpu"]),
    ],
)
def test_worker_devices(setting: str, devices: list[str]) -> None:
    assert worker_devices(setting, lambda: 3) == devices


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cuda:all", "PyTorch finds no CUDA device"),
        ("2,3", "is not a list of devices"),
        ("", "is not a list of devices"),
        ("cuda:0,", "is not a list of devices"),
        ("cuda:0,0", "lists cuda:0 twice"),
    ],
)
def test_unusable_lists_are_rejected(setting: str, message: str) -> None:
    with pytest.raises(ServeError, match=message):
        worker_devices(setting, lambda: 0)


def test_workers_of_one_machine_share_no_port_and_no_file() -> None:
    given = {"IMG2IMG_METRICS_PORT": "9100", "IMG2IMG_LIVE_FILE": "/tmp/live", "HOME": "/root"}
    first, second = (environment_of(index, ["cuda:0", "cuda:1"], given) for index in (0, 1))
    assert first == given | {"IMG2IMG_DEVICE": "cuda:0"}
    assert second == {
        "IMG2IMG_METRICS_PORT": "9101",
        "IMG2IMG_LIVE_FILE": "/tmp/live.1",
        "IMG2IMG_DEVICE": "cuda:1",
        "HOME": "/root",
    }


def test_workers_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert environment_of(1, ["cpu", "cpu"], {})["OMP_NUM_THREADS"] == "4"
    assert environment_of(1, ["cpu", "cpu"], {"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in environment_of(1, ["cuda:0", "cpu"], {})
