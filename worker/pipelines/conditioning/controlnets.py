"""ControlNets next to a model: loading them, their gates, and the stock pipelines that call them."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ControlNetModel, DiffusionPipeline, MultiControlNetModel

from img2img.domain.conditioning import ControlType
from img2img.domain.spec import Task

from ...engine import Gate
from ...errors import StartupError
from ..families import Family
from ..loading.components import build
from ..loading.model_config import ComponentSource, ModelConfig


class ControlNets:
    """The ControlNets of one model, each behind a gate of its own, and its pipelines for every task with controls."""

    def __init__(self, entry: ModelConfig, family: Family, base: DiffusionPipeline) -> None:
        """base: the model's own pipeline, whose parts are shared. Raises StartupError."""
        if entry.controlnets and not family.controlnet_pipelines:
            raise StartupError(f"model {entry.name!r}: {family.name} models are not served with ControlNets")
        # One that follows maps of several types is loaded once, and jobs of all of them merge.
        loaded: dict[ComponentSource, ControlNetModel] = {}
        for kind, part in entry.controlnets.items():
            if part not in loaded:
                loaded[part] = _load(entry, kind, part, base)
        self._nets = {kind: loaded[part] for kind, part in entry.controlnets.items()}
        self._templates: dict[Task, DiffusionPipeline] = {}
        for net in loaded.values():
            net.forward = PerRequestScale(Gate("control", net.forward))
        if self._nets:
            first = next(iter(self._nets.values()))
            self._templates = {
                t: build(kind, base, controlnet=first) for t, kind in family.controlnet_pipelines.items()
            }

    @property
    def types(self) -> tuple[ControlType, ...]:
        """What they can follow."""
        return tuple(self._nets)

    def pipeline(self, task: Task, types: Sequence[ControlType]) -> DiffusionPipeline:
        """A pipeline object for a job that is steered by these, in this order."""
        own = copy.copy(self._templates[task])
        nets = [self._nets[kind] for kind in types]
        own.controlnet = nets[0] if len(nets) == 1 else MultiControlNetModel(nets)
        return own


class PerRequestScale:
    """A ControlNet's forward whose scale stays out of the shared call.

    All that a ControlNet puts out is multiplied by its scale at the very end, so that scale 1 in the shared call and a
    multiplication of each job's part are the same numbers, bit for bit; and jobs of every scale merge. A job for which
    it is switched off (scale 0, before `start` and after `end`) needs nothing but zeros, and calls nothing.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._parameters = inspect.signature(ControlNetModel.forward)
        self._shapes: dict[torch.Size, list[torch.Size]] = {}  # of the output by that of the input, both without rows

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What `return_dict=False` gives: the residuals of the down blocks and that of the middle block."""
        bound = self._parameters.bind(None, *args, **kwargs)
        bound.apply_defaults()  # pipelines call it in several ways, and calls merge if they look alike
        arguments = {name: value for name, value in bound.arguments.items() if name not in ("self", "return_dict")}
        scale, sample = arguments.pop("conditioning_scale"), arguments["sample"]
        shapes = self._shapes.get(sample.shape[1:])
        if scale == 0 and shapes:
            residuals = [sample.new_zeros((len(sample), *shape)) for shape in shapes]
        else:
            down, middle = self._gate(**arguments, conditioning_scale=1.0, return_dict=False)
            self._shapes[sample.shape[1:]] = [residual.shape[1:] for residual in (*down, middle)]
            residuals = [residual * scale for residual in (*down, middle)]
        return residuals[:-1], residuals[-1]


def _load(entry: ModelConfig, kind: ControlType, part: ComponentSource, base: DiffusionPipeline) -> ControlNetModel:
    """A ControlNet in the type and on the device of the model. Safetensors only."""
    name = f"model {entry.name!r}: ControlNet {kind}"
    if part.weight_name or part.source.endswith(".safetensors"):
        raise StartupError(f"{name}: {part.source} should be a folder or a hub id in diffusers' format, not a file")
    where: dict[str, Any] = {"revision": part.revision, "subfolder": part.subfolder}
    try:
        made_as = ControlNetModel.load_config(part.source, **where)["_class_name"]
        if made_as != "ControlNetModel":
            raise StartupError(f"{name}: {part.source} is a {made_as}; this version takes a ControlNetModel")
        net = ControlNetModel.from_pretrained(part.source, dtype=base.unet.dtype, use_safetensors=True, **where)
    except (OSError, ValueError, KeyError) as error:
        raise StartupError(f"{name}: cannot load {part.source}: {str(error).strip().splitlines()[0]}") from error
    theirs, ours = net.config.cross_attention_dim, base.unet.config.cross_attention_dim
    if theirs != ours:
        raise StartupError(f"{name} reads text embeddings of {theirs} numbers; those of this model have {ours}")
    return net.to(base.device)


def control_arguments(
    task: Task, maps: Sequence[torch.Tensor], scales: Sequence[float], spans: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """The pipelines' arguments for a job's controls: values for one, lists for several.

    maps: (1, 3, height, width) in [0, 1]. spans: the shares of the steps after which each begins and ends.
    """
    lists: dict[str, list[Any]] = {
        "image" if task is Task.CONTROL else "control_image": list(maps),
        "controlnet_conditioning_scale": list(scales),
        "control_guidance_start": [start for start, _ in spans],
        "control_guidance_end": [end for _, end in spans],
    }
    return lists if len(maps) > 1 else {name: value for name, [value] in lists.items()}
