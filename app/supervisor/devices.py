"""The devices that PyTorch finds on this machine, and one worker for each device that `IMG2IMG_DEVICE` lists."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from .errors import ServeError

# -P: modules in the working directory must not shadow installed ones.
PYTHON = (sys.executable, "-P", "-m")
AUTO = "auto"
# Settings that have to differ between the workers of one machine.
METRICS_PORT, LIVE_FILE = "IMG2IMG_METRICS_PORT", "IMG2IMG_LIVE_FILE"


def device_report() -> dict[str, Any]:
    """Return the devices that PyTorch finds, from a process of the worker. Raises RuntimeError."""
    return _report_of("device_report", os.environ)


def model_report(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the needs of the configured models, from a process of the worker that asks no hub. Raises RuntimeError."""
    # One device of several.
    several = {"IMG2IMG_DEVICE": AUTO} if _is_list(environment.get("IMG2IMG_DEVICE", "")) else {}
    return _report_of("model_report", {**environment, **several, "HF_HUB_OFFLINE": "1"})


def _is_list(device: str) -> bool:
    return "," in device or device.endswith(":all")


def _report_of(module: str, environment: Mapping[str, str]) -> dict[str, Any]:
    command = [*PYTHON, f"img2img.worker.runtime.{module}"]
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "cannot be imported").splitlines()[-1])
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def worker_devices(setting: str, count_gpus: Callable[[], int]) -> list[str]:
    """Return the device of each worker.

    Args:
        setting: Devices separated by commas: `auto`, `cpu`, `cuda:0,cuda:1`, in short `cuda:0,1`, or `cuda:all`.
        count_gpus: Returns the number of CUDA devices. Called for `cuda:all` only.

    Raises:
        ServeError: A device is listed twice or is no device, or there is no GPU.
    """
    devices: list[str] = []
    for part in setting.split(","):
        name = part.strip()
        if name.isdecimal() and devices and ":" in devices[-1]:
            name = f"{devices[-1].partition(':')[0]}:{name}"
        if name == "cuda:all":
            devices += [f"cuda:{index}" for index in range(count_gpus())]
            if not devices:
                raise ServeError("IMG2IMG_DEVICE=cuda:all, but PyTorch finds no CUDA device: `img2img doctor` says why")
        elif not name or name.isdecimal():
            raise ServeError(
                f"IMG2IMG_DEVICE={setting!r} is not a list of devices, such as cpu, cuda:all or cuda:0,cuda:1"
            )
        else:
            devices.append(name)
    for device in devices:
        if devices.count(device) > 1 and device != "cpu":
            raise ServeError(f"IMG2IMG_DEVICE lists {device} twice; one worker runs many jobs at once on a device")
    return devices


def environment_of(index: int, devices: list[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the worker of a device: with its own metrics port and live file.

    Args:
        index: Index of the device.
        environment: Environment of the service.
    """
    changes = {"IMG2IMG_DEVICE": devices[index]}
    if index and environment.get(METRICS_PORT):
        changes[METRICS_PORT] = str(int(environment[METRICS_PORT]) + index)
    if index and environment.get(LIVE_FILE):
        changes[LIVE_FILE] = f"{environment[LIVE_FILE]}.{index}"
    cpu_workers = devices.count("cpu")
    if devices[index] == "cpu" and cpu_workers > 1 and "OMP_NUM_THREADS" not in environment:
        # More threads than cores wait for each other.
        changes["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // cpu_workers))
    return {**environment, **changes}


def count_gpus() -> int:
    """Return the number of CUDA devices. Raises ServeError if PyTorch cannot be imported."""
    try:
        return len(device_report()["gpus"])
    except RuntimeError as error:
        raise ServeError(f"PyTorch: {error}") from None
