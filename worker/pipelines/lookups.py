"""Look-ups that stock pipelines repeat in every call, although their results do not change for a loaded model.

Reading the device of a pipeline or the dtype of a UNet walks over all layers: 18 ms per job of Stable Diffusion XL.
"""

import inspect
from functools import cache, lru_cache
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import torch_utils

from .replaced_functions import replace_in_diffusers
from .uploads import from_host

# Methods that make small tensors in main memory, which the pipelines then copy to the device.
_MAKE_TENSORS = ("_get_add_time_ids", "get_guidance_scale_embedding")
# Static methods that make position ids, equal for all jobs of a size.
_MAKE_IDS = ("_prepare_latent_image_ids",)
_SIZES = 16


_stock_execution_device = torch_utils.get_module_execution_device


def _execution_device(module: Any) -> torch.device:
    """Replace `get_module_execution_device` of diffusers for the modules of served models."""
    device: torch.device = getattr(module, "kept_execution_device", None) or _stock_execution_device(module)
    return device


@cache
def use_kept_lookups() -> None:
    """Let the pipelines of diffusers read what `keep_module_lookups` has kept."""
    replace_in_diffusers("get_module_execution_device", _stock_execution_device, _execution_device)


def keep_lookups(pipeline: DiffusionPipeline, device: torch.device) -> None:
    """Make the results of a pipeline's look-ups attributes. Copies of the pipeline keep them.

    Args:
        device: where its modules compute.
    """
    kind: Any = type(pipeline)
    pipeline.__class__ = _class_with_attributes(kind, device.type)
    pipeline._execution_device = pipeline.device = device


@cache
def _class_with_attributes(kind: type[Any], device_type: str) -> type[Any]:
    """Return a subclass of a pipeline class in which properties are attributes."""
    modules, optional = kind._get_signature_keys(kind)
    changes: dict[str, Any] = {
        "__module__": kind.__module__,
        "_execution_device": None,
        "device": None,
        # Read with `components`. Lists of its own for each caller.
        "_get_signature_keys": classmethod(lambda _cls, _pipeline: (list(modules), list(optional))),
    }
    if hasattr(kind, "_maybe_convert_prompt"):
        changes["_maybe_convert_prompt"] = _convert_once(kind)
    if device_type != "cpu":
        changes |= {name: from_host(getattr(kind, name)) for name in _MAKE_TENSORS if hasattr(kind, name)}
        ids = {name: inspect.getattr_static(kind, name, None) for name in _MAKE_IDS}
        changes |= {
            name: staticmethod(lru_cache(_SIZES)(method.__func__))
            for name, method in ids.items()
            if isinstance(method, staticmethod)
        }
    return type(kind.__name__, (kind,), changes)


def _convert_once(kind: type[Any]) -> Any:
    def convert(self: Any, prompt: str, tokenizer: Any) -> str:
        if not hasattr(tokenizer, "kept"):
            return str(kind._maybe_convert_prompt(self, prompt, tokenizer))
        return str(tokenizer.kept.convert(prompt, lambda: kind._maybe_convert_prompt(self, prompt, tokenizer)))

    return convert


def keep_module_lookups(module: Any, device: torch.device) -> None:
    """Make the dtype and the execution device of a model of diffusers or transformers attributes.

    Args:
        device: where the module computes.
    """
    kind: Any = type(module)
    module.kept_execution_device = device
    if "dtype" not in vars(kind) and isinstance(getattr(kind, "dtype", None), property):
        module.__class__ = _class_with_dtype(kind, module.dtype)


@cache
def _class_with_dtype(kind: type[Any], dtype: torch.dtype) -> type[Any]:
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "dtype": dtype})
