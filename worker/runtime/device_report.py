"""Prints the devices that PyTorch finds, as JSON: `python -m img2img.worker.runtime.device_report`."""

import json
import sys
from typing import Any

import torch


def device_report() -> dict[str, Any]:
    """Return the build of PyTorch and its devices. Memory is in bytes."""
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append({"name": torch.cuda.get_device_name(index), "free": free, "total": total})
    return {
        "torch": torch.__version__,
        # None for a CPU build.
        "cuda": torch.version.cuda,
        # None for a build that is not for AMD GPUs, which are CUDA devices to PyTorch.
        "rocm": torch.version.hip,
        "gpus": gpus,
        "mps": torch.backends.mps.is_available(),
        "xpus": [torch.xpu.get_device_name(index) for index in range(torch.xpu.device_count())],
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(device_report()) + "\n")
