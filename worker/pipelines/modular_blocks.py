"""What the blocks of a modular pipeline of diffusers can do: its tasks, the inputs of each, and its guider."""

import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import ModularPipeline, SequentialPipelineBlocks
from diffusers.guiders.guider_utils import BaseGuidance
from PIL import Image

from img2img.domain.parameters import Task

from ..errors import StartupError
from .call_signature import IMAGE_ARGUMENTS, why_not
from .loading.locations import components
from .loading.modular_index import GUIDER_CONFIG

_MASK = "mask_image"
# Outputs of blocks that are lists if each of several references is prepared by itself.
_PER_REFERENCE = ("condition_images", "image_latents", "image_cond_latents", "image_height")
# What blocks do to modules for the time of a call: Stable Diffusion XL decodes in float32.
_CHANGES_MODULES = re.compile(r"set_attn_processor|register_forward_(pre_)?hook|\bvae\.to\(")


def is_modular(class_name: str) -> bool:
    """Return whether diffusers has a modular pipeline of this name."""
    kind = getattr(diffusers, class_name, None)
    return isinstance(kind, type) and issubclass(kind, ModularPipeline)


def modular_tasks(class_name: str) -> tuple[Task, ...]:
    """Return the tasks of a modular pipeline that has all its components.

    Raises:
        StartupError: no request gives the inputs of its blocks.
    """
    return tuple(call_inputs(class_name, tasks_of(blocks_of({"_class_name": class_name}))))


def blocks_of(index: Mapping[str, Any]) -> SequentialPipelineBlocks:
    """Return the blocks of a model, without the optional ones whose components it lacks."""
    class_name, blocks_name = index["_class_name"], index.get("_blocks_class_name")
    kind = getattr(diffusers, class_name)
    if blocks_name is not None and not hasattr(diffusers, blocks_name):
        raise StartupError(
            f"{class_name}: diffusers {diffusers.__version__} has no blocks {blocks_name}; update it if they are part "
            "of a later release: code outside of diffusers is not run"
        )
    # As diffusers: blocks that were put together by hand are saved under the name of their base class.
    blocks_class = getattr(diffusers, blocks_name or "", None)
    if blocks_class is None or not blocks_class.block_classes:
        blocks_class = getattr(diffusers, kind.default_blocks_name or "", None)
    if blocks_class is None:
        raise StartupError(f"{class_name} is not supported: its index does not name its blocks")
    blocks: SequentialPipelineBlocks = blocks_class()
    present = components(index)
    for name, block in list(blocks.sub_blocks.items()):
        needed = [spec.name for spec in block.expected_components if spec.default_creation_method == "from_pretrained"]
        rewrites = set(block.intermediate_output_names) <= set(block.input_names)
        if rewrites and needed and not set(needed) & set(present):
            blocks.sub_blocks.pop(name)
    return blocks


def tasks_of(blocks: SequentialPipelineBlocks) -> dict[Task, SequentialPipelineBlocks]:
    """Return the blocks that run for each task."""
    names = blocks.input_names
    image = next((name for name in IMAGE_ARGUMENTS if name in names), None)
    if image is None or "images" not in blocks.output_names:
        return {}
    whole = blocks.get_execution_blocks(**{"prompt": True, image: True})
    tasks = {}
    # Those of inpainting only select no block without a mask.
    if image in whole.input_names:
        tasks[Task.IMG2IMG if "strength" in whole.input_names else Task.EDIT] = whole
    if _MASK in names:
        tasks[Task.INPAINT] = blocks.get_execution_blocks(**{"prompt": True, image: True, _MASK: True})
    return tasks


def call_inputs(
    class_name: str, tasks: Mapping[Task, SequentialPipelineBlocks]
) -> dict[Task, dict[str, inspect.Parameter]]:
    """Return the inputs of each task that requests have.

    Raises:
        StartupError: there is no such task.
    """
    inputs = {task: _parameters(active) for task, active in tasks.items()}
    reasons = {task: why_not(takes) for task, takes in inputs.items()}
    served = {task: takes for task, takes in inputs.items() if reasons[task] is None}
    if not served:
        reason = next(iter(reasons.values()), "its blocks have no image as input and as output")
        raise StartupError(f"{class_name} is not supported: {reason}")
    return served


def _parameters(blocks: SequentialPipelineBlocks) -> dict[str, inspect.Parameter]:
    """Return the inputs of blocks as parameters of a call."""
    takes_list = any(
        output.name in _PER_REFERENCE and str(output.type_hint).startswith("list[")
        for output in blocks.intermediate_outputs
    )
    parameters = {}
    for item in blocks.inputs:
        if item.name is None:
            continue
        default = inspect.Parameter.empty if item.required else item.default
        hint = item.type_hint
        if item.name in IMAGE_ARGUMENTS:
            hint = list[Image.Image] if takes_list else Image.Image
        parameters[item.name] = inspect.Parameter(
            item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
        )
    return parameters


def guider_of(specs: Mapping[str, Any], index: Mapping[str, Any]) -> BaseGuidance | None:
    """Return the guider of a model: that of its folder, or that of the blocks."""
    if "guider" not in specs:
        return None
    kind = getattr(diffusers, components(index).get("guider", ("", ""))[1], None)
    guider: BaseGuidance
    guider = specs["guider"].create() if kind is None else kind.from_config(index.get(GUIDER_CONFIG, {}))
    return guider


def adds_hooks(guider: BaseGuidance | None) -> bool:
    """Return whether a guider changes the denoiser for the time of a step, as those do that leave out layers."""
    return guider is not None and type(guider).prepare_models is not BaseGuidance.prepare_models


def changes_modules(block: Any) -> bool:
    if block.sub_blocks:
        return any(changes_modules(part) for part in block.sub_blocks.values())
    return bool(_CHANGES_MODULES.search(inspect.getsource(sys.modules[type(block).__module__])))
