"""Prints the needs of the models as JSON: `python -m img2img.worker.runtime.model_report`. It loads no weights."""

import json
import sys
from typing import Any

from ..devices import choose_device
from ..errors import StartupError
from ..pipelines.loading.served_models import ModelSelection, models_of_file
from ..pipelines.model import describe_model
from ..settings import WorkerSettings
from .memory_meter import memory_meter
from .model_memory import reader_of, total_memory


def model_report(settings: WorkerSettings) -> dict[str, Any]:
    """Return the device, its free memory, and for each model the memory of its weights or why it cannot be served.

    Memory is in bytes.

    Raises:
        StartupError: the settings or the model file cannot be used.
    """
    device = choose_device(settings.device)
    known = models_of_file(settings.model, settings.revision, settings.models_file)
    models: list[dict[str, Any]] = []
    selection = ModelSelection(settings.serve, (), settings.model_defaults)
    for name, config in selection.select(known, {}).configs.items():
        try:
            description = describe_model(config, device=device)
        except StartupError as error:
            models.append({"name": name, "error": str(error)})
        else:
            sizes = {"needed": description.memory_bytes}
            models.append({"name": name, "dtype": description.card.dtype, "offload": config.offload} | sizes)
    read_free = reader_of(device, memory_meter(device))
    return {"device": device, "free": read_free() if read_free else total_memory(device), "models": models}


if __name__ == "__main__":
    try:
        report = model_report(WorkerSettings())
    except (StartupError, ValueError) as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(report) + "\n")
