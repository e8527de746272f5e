"""Loads the ControlNets of a model (Zhang et al., 2023) and builds the stock pipelines that call them."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ControlNetModel, DiffusionPipeline, MultiControlNetModel

from img2img.domain.conditioning import ControlType
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Task

from ...engine.gate import Gate
from ...errors import StartupError
from ..families import Family
from ..loading.components import build_pipeline, load_component
from ..loading.failures import reporting_failures
from ..loading.locations import component_class, component_folder
from ..loading.placement import Placement


class ControlNets:
    """The ControlNets of one model, each behind its gate, and a pipeline for every task with controls."""

    def __init__(self, config: ModelConfig, family: Family, base: DiffusionPipeline, placement: Placement) -> None:
        """Load the ControlNets that `config` lists.

        Args:
            base: pipeline of the model; its components are shared.

        Raises:
            StartupError: if the family has no ControlNets, or if one cannot be loaded or does not fit.
        """
        if config.controlnets and not family.controlnet_pipelines:
            raise StartupError(f"ControlNets are not supported for {family.name} models; remove `controlnets`")
        # A ControlNet that is listed for several control types is loaded once, and their jobs are batched together.
        loaded: dict[ComponentSource, ControlNetModel] = {}
        for control_type, source in config.controlnets.items():
            if source not in loaded:
                loaded[source] = _load(control_type, source, base)
        self._nets = {control_type: loaded[source] for control_type, source in config.controlnets.items()}
        self.pipelines: dict[Task, DiffusionPipeline] = {}
        for net in loaded.values():
            placement.put("controlnet", net)
            net.forward = PerRequestScale(Gate("control", net.forward))
        if self._nets:
            first = next(iter(self._nets.values()))
            self.pipelines = {
                task: build_pipeline(kind, base, controlnet=first) for task, kind in family.controlnet_pipelines.items()
            }

    @property
    def types(self) -> tuple[ControlType, ...]:
        return tuple(self._nets)

    @property
    def modules(self) -> list[ControlNetModel]:
        return list(self._nets.values())

    def pipeline(self, task: Task, types: Sequence[ControlType]) -> DiffusionPipeline:
        """Return a pipeline object for one job with controls of these types, in this order."""
        pipeline = copy.copy(self.pipelines[task])
        nets = [self._nets[control_type] for control_type in types]
        pipeline.controlnet = nets[0] if len(nets) == 1 else MultiControlNetModel(nets)
        return pipeline


class PerRequestScale:
    """Forward of a ControlNet that applies `conditioning_scale` after the batched call.

    A ControlNet multiplies its outputs by the scale as its last operation. Running the batch with scale 1 and
    multiplying the rows of each job afterwards gives the same numbers bit for bit, and jobs of different scales can be
    batched together. Scale 0 (outside of `control_guidance_start` and `control_guidance_end`) returns zeros without
    a call.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._parameters = inspect.signature(ControlNetModel.forward)
        # Shapes of the residuals by shape of the sample, both without the batch dimension.
        self._shapes: dict[torch.Size, list[torch.Size]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the residuals of the down blocks and of the middle block, as with `return_dict=False`."""
        bound = self._parameters.bind(None, *args, **kwargs)
        # Pipelines pass different subsets of the arguments; calls are batched only if their arguments match.
        bound.apply_defaults()
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


def _load(control_type: ControlType, source: ComponentSource, base: DiffusionPipeline) -> ControlNetModel:
    """Load a ControlNet in the dtype and on the device of the model. Safetensors only."""
    label = f"ControlNet {control_type}"
    if source.weight_name or source.source.endswith(".safetensors"):
        raise StartupError(f"{label}: {source.source} must be a folder or hub id in diffusers' format, not a file")
    with reporting_failures(label):
        folder = component_folder(source)
        class_name = component_class(folder)
        if class_name != "ControlNetModel":
            raise StartupError(
                f"{folder} is a {class_name or 'component without `_class_name`'}; only ControlNetModel is supported"
            )
        net: ControlNetModel = load_component(ControlNetModel, folder, base.unet.dtype)
    width, model_width = net.config.cross_attention_dim, base.unet.config.cross_attention_dim
    if width != model_width:
        raise StartupError(
            f"{label} does not fit the model: its cross_attention_dim is {width}, that of the model is {model_width}"
        )
    return net


def control_arguments(
    task: Task, maps: Sequence[torch.Tensor], scales: Sequence[float], ranges: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Return the pipeline arguments for the controls of a job: single values for one control, else lists.

    Args:
        maps: control maps of shape (1, 3, height, width) with values in [0, 1].
        scales: conditioning scale of each control.
        ranges: start and end of each control, as fractions of the steps.
    """
    lists: dict[str, list[Any]] = {
        "image" if task is Task.CONTROL else "control_image": list(maps),
        "controlnet_conditioning_scale": list(scales),
        "control_guidance_start": [start for start, _ in ranges],
        "control_guidance_end": [end for _, end in ranges],
    }
    return lists if len(maps) > 1 else {name: value for name, [value] in lists.items()}
