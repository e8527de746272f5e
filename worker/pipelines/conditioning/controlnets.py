"""Loads the ControlNets of a model (Zhang et al., 2023) and gives them to the pipeline objects of jobs."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ControlNetModel, DiffusionPipeline

from img2img.domain.conditioning import Control, ControlName
from img2img.domain.model_config import ComponentSource, ControlNetSource, ModelConfig
from img2img.domain.parameters import Task

from ...errors import StartupError
from ..families import Family
from ..loading.components import build_pipeline
from ..loading.controlnet_files import load_controlnet
from ..loading.failures import reporting_failures
from ..loading.placement import Placement
from .control_gates import ControlGroup, PerRequestScale
from .control_modes import control_mode
from .controlled_transformers import ActiveControl


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
        self._family = family
        # A ControlNet that is listed for several control types is loaded once, and their jobs are batched together.
        loaded: dict[ComponentSource, Any] = {}
        self._nets: dict[ControlName, Any] = {}
        self._modes: dict[ControlName, int | None] = {}
        for control_type, source in config.controlnets.items():
            with reporting_failures(f"ControlNet {control_type}"):
                part = _without_mode(source)
                if part not in loaded:
                    loaded[part] = load_controlnet(part, family.controlnet_classes, base)
                self._nets[control_type] = loaded[part]
                self._modes[control_type] = control_mode(control_type, source.mode, loaded[part])
        _check_hints(self._nets)
        for net in loaded.values():
            placement.put("controlnet", net)
        self._gates = {id(net): self._install_gate(net, base) for net in loaded.values()}
        self.pipelines: dict[Task, DiffusionPipeline] = {}
        if self._nets:
            # Any that the pipelines accept; each job gets its own.
            first = ControlGroup(list(self._nets.values())[:1], (None,))
            needed = {"controlnet": first} if family.controlled_transformer is None else {}
            self.pipelines = {
                task: build_pipeline(kind, base, **needed) for task, kind in family.controlnet_pipelines.items()
            }

    def _install_gate(self, net: Any, base: DiffusionPipeline) -> Callable[..., Any]:
        """Return the gated forward of a ControlNet. Of one for a UNet, it replaces the forward."""
        if self._family.controlled_transformer is not None:
            return self._family.controlled_transformer.gate(net, base.transformer)
        net.forward = PerRequestScale(net)
        forward: Callable[..., Any] = net.forward
        return forward

    @property
    def types(self) -> tuple[ControlName, ...]:
        return tuple(self._nets)

    @property
    def modules(self) -> list[Any]:
        return list(self._nets.values())

    def pipeline(self, task: Task) -> DiffusionPipeline:
        """Return a pipeline object for one job with controls."""
        return copy.copy(self.pipelines[task])

    def attach(
        self,
        pipeline: DiffusionPipeline,
        task: Task,
        controls: Sequence[Control],
        maps: Sequence[torch.Tensor],
        *,
        generator: torch.Generator,
        guidance_scale: float,
    ) -> dict[str, Any]:
        """Give the pipeline object of a job the ControlNets of its controls. Returns more arguments of its call.

        Args:
            maps: control maps of shape (1, 3, height, width) with values in [0, 1].
            generator: generator of the job.
        """
        nets = [self._nets[control.type] for control in controls]
        modes = [self._modes[control.type] for control in controls]
        if self._family.controlled_transformer is not None:
            active = [
                ActiveControl(net, self._gates[id(net)], mode, 2 * pixels - 1, control)
                for net, mode, pixels, control in zip(nets, modes, maps, controls, strict=True)
            ]
            self._family.controlled_transformer(pipeline, active, generator=generator, guidance_scale=guidance_scale)
            return {}
        is_single = len(nets) == 1 and isinstance(nets[0], ControlNetModel)
        pipeline.controlnet = nets[0] if is_single else ControlGroup(nets, modes)
        lists: dict[str, list[Any]] = {
            "image" if task is Task.CONTROL else "control_image": list(maps),
            "controlnet_conditioning_scale": [control.scale for control in controls],
            "control_guidance_start": [control.start for control in controls],
            "control_guidance_end": [control.end for control in controls],
        }
        return {name: value for name, [value] in lists.items()} if is_single else lists


def _without_mode(source: ControlNetSource) -> ComponentSource:
    return ComponentSource(**source.model_dump(exclude={"mode"}))


def _check_hints(nets: dict[ControlName, Any]) -> None:
    """Check that ControlNets for FLUX agree in whether they take pixels: the transformer adds outputs in two ways.

    Raises:
        StartupError: they do not.
    """
    if len({getattr(net, "input_hint_block", None) is None for net in nets.values()}) > 1:
        raise StartupError(
            "ControlNets with and without an `input_hint_block` (XLabs) cannot be served by one model; list two models"
        )
