"""The published schedulers of model families, for folders that lack theirs."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from ...errors import StartupError
from .checkpoint_layout import Config
from .checkpoint_layouts import LAYOUTS

log = logging.getLogger(__name__)

_FLUX, _FLOW = LAYOUTS["flux-dev"].scheduler, LAYOUTS["sd3"].scheduler
_QWEN = {**_FLUX, "max_image_seq_len": 8192, "max_shift": 0.9, "shift": 1.0, "shift_terminal": 0.02}
# By the start of the class of a pipeline; the first that matches counts.
_SCHEDULERS: tuple[tuple[str, Config], ...] = (
    ("StableDiffusionXL", LAYOUTS["xl_base"].scheduler),
    ("StableDiffusion3", _FLOW),
    ("StableDiffusion", LAYOUTS["v1"].scheduler),
    ("LatentConsistencyModel", {**LAYOUTS["v1"].scheduler, "_class_name": "LCMScheduler"}),
    ("Flux", _FLUX),
    ("QwenImage", _QWEN),
    ("ZImage", _FLOW),
)
_SD2_WIDTH = 1024


def default_scheduler(index: Mapping[str, Any], folder: Path) -> Any:
    """Return the scheduler that the family of a pipeline was published with.

    Args:
        index: content of the model_index.json of the pipeline.
        folder: folder of the pipeline.

    Raises:
        StartupError: there is no such scheduler, or more than one.
    """
    name = index["_class_name"]
    config = next((config for start, config in _SCHEDULERS if name.startswith(start)), None)
    if name == "FluxPipeline" and not _read(folder / "transformer").get("guidance_embeds", True):
        config = LAYOUTS["flux-schnell"].scheduler
    if config is None or _read(folder / "unet").get("cross_attention_dim") == _SD2_WIDTH:
        raise StartupError(
            f"{folder} has no scheduler/scheduler_config.json; copy it from the model that it is based on"
        )
    class_name = config["_class_name"]
    log.warning("%s has no scheduler_config.json; it gets the scheduler of its family, %s", folder, class_name)
    return getattr(diffusers, class_name).from_config(dict(config))


def _read(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content
