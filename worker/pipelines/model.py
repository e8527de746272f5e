"""Loads models and prepares their pipelines for jobs."""

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, SchedulerMixin

from img2img.domain.model_card import ModelCard
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.model_status import Batching
from img2img.domain.parameters import Scheduler, Sigmas, Task

from ..devices import default_dtype, why_no_dtype
from ..engine.exact_rows import keep_rows_exact
from ..engine.preemption import add_break_points
from ..errors import StartupError
from .card import base_card, component_fields, max_clip_skip, with_optional_parameters
from .conditioning.adapters import Adapters
from .conditioning.annotators import load_annotators
from .conditioning.concat_unets import load_concat_pipelines, pipeline_classes
from .conditioning.controlnets import ControlNets
from .conditioning.denoiser_changes import find_perturbed
from .conditioning.embeddings import Embeddings
from .conditioning.matting import load_matting
from .conditioning.refiner import load_refiner, refiner_pipelines
from .conditioning.segmenters import load_segmenters
from .conditioning.upscalers import Upscaler, load_upscalers
from .families import Family, family_of
from .gates import gate_of, gate_vae, install_gates
from .generic_family import add_missing_settings, generic_family
from .generic_jobs import (
    Turns,
    autoencoder,
    copy_for_job,
    install_module_gates,
    is_video,
    latent_scale,
)
from .host_schedulers import on_host, unused_copy, with_tables
from .image_processors import check_processors
from .loading.acceleration import accelerate_pipeline
from .loading.checkpoint import Checkpoint
from .loading.compilation import CompiledRun, check_compile, compile_denoiser
from .loading.components import build_pipeline, load_pipeline, memory_remedy
from .loading.failures import reporting_failures
from .loading.fingerprint import fingerprint_of
from .loading.locations import PipelineLocation, components
from .loading.placement import Placement
from .loading.quantization import Quantizer, saved_bytes
from .loading.single_file import find_checkpoint
from .loading.vae_files import load_fast_vae, load_vae
from .loading.weightless import WeightFiles, is_weightless, without_weights
from .lookups import keep_lookups, keep_module_lookups
from .memory import tensor_sizes
from .preparation import Preparation
from .preview import LatentPreview
from .safety_checker import ImageChecker, load_safety_checker, mode_of
from .schedulers import check_scheduler, make_scheduler, with_prediction_type
from .vae_memory import limit_vae_memory

log = logging.getLogger(__name__)

hub_logger = logging.getLogger("huggingface_hub")
hub_logger.handlers.clear()
hub_logger.propagate = True

for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()
    # Log through our handlers.
    library.utils.logging.disable_default_handler()
    library.utils.logging.enable_propagation()
    # Warnings would quote the truncated part of long prompts.
    library.utils.logging.set_verbosity_error()


class Model:
    """A loaded model: its card, its modules behind gates, and a pipeline object for every job."""

    def __init__(self, config: ModelConfig, family: Family, pipeline: DiffusionPipeline, placement: Placement) -> None:
        """Load the components that `config` lists and install gates.

        Args:
            pipeline: pipeline of the family's first task, where `placement` has modules loaded. They get gates.
            placement: puts modules on the device, or offloads them.

        Raises:
            StartupError: if a component cannot be loaded or does not fit the model.
        """
        self.family = family
        refiner = load_refiner(config, family, pipeline)
        self.embeddings = Embeddings(config, family)
        self.embeddings.add_to(pipeline)
        accelerate_pipeline(config, pipeline)
        # Adapters copy modules, so they come before the gates.
        self.adapters = Adapters(config, pipeline, family, placement)
        placement.put_components(pipeline)
        self.vae = autoencoder(pipeline)
        # Pixels along a side of a latent.
        self.latent_scale = latent_scale(pipeline)
        limit_vae_memory(self.vae, config, self.latent_scale)
        fast_vae = load_fast_vae(config.fast_vae, self.vae, pipeline.dtype) if config.fast_vae else None
        if family.is_generic:
            add_missing_settings(pipeline, family)
            install_module_gates(pipeline)
        else:
            install_gates(pipeline, family.gate_denoiser)
        if fast_vae is not None:
            placement.put("vae", fast_vae)
            limit_vae_memory(fast_vae, config, self.latent_scale)
            gate_vae(fast_vae, upcasts=hasattr(pipeline, "upcast_vae"))
        self.fast_vae: torch.nn.Module | None = fast_vae
        kinds = pipeline_classes(family, pipeline)
        self._pipelines = {task: _pipeline_of(kind, pipeline, family) for task, kind in kinds.items()}
        self._pipelines |= load_concat_pipelines(config, family, pipeline, placement, self.embeddings)
        if refiner is not None:
            placement.put_components(refiner)
        self._refiners = refiner_pipelines(refiner, family) if refiner is not None else {}
        upscalers = load_upscalers(config, family, pipeline, placement)
        for other in (*self._pipelines.values(), *upscalers.values(), *self._refiners.values()):
            if family.is_generic:
                install_module_gates(other)
                continue
            limit_vae_memory(other.vae, config, other.vae_scale_factor)
            install_gates(other, family.gate_denoiser)
        self._perturbed = _perturbed_pipelines(config, family, self._pipelines)
        # The compiled denoisers: its own, and that of the refiner.
        self.compiled = [] if is_weightless() else self._compile(config, pipeline)
        self.upscalers = {
            factor: Upscaler(factor, upscaler, config.upscale[factor], pipeline)
            for factor, upscaler in upscalers.items()
        }
        self.controlnets = ControlNets(config, family, pipeline, placement)
        self.annotators = load_annotators(config, placement)
        self.segmenters = load_segmenters(config, placement)
        self.matting = load_matting(config, placement)
        card = base_card(config, family, pipeline).model_copy(
            update=component_fields(
                family, self._pipelines, pipeline, self.upscalers, self.controlnets, tuple(self.annotators)
            )
        )
        card = with_optional_parameters(
            card, config, family, self._pipelines, self.controlnets.pipelines, self._perturbed
        )
        card = card.model_copy(
            update={
                "embeddings": self.embeddings.names,
                "fast_vae": fast_vae is not None,
                "masks": self.segmenters.kinds,
                "mask_words": self.segmenters.words,
                "matting": self.matting is not None,
                "max_clip_skip": max_clip_skip(self._all_pipelines()),
            }
        )
        fingerprint = fingerprint_of(config, placement.device, pipeline.dtype)
        self.card = self.adapters.add_to_card(card, self._pipelines).model_copy(update={"fingerprint": fingerprint})
        self.compile_sizes = _compile_sizes(config, self.card)
        # Set by `set_safety_checker`. None: images are not checked.
        self.safety_checker: ImageChecker | None = None
        self.is_video_vae = family.video_vae or is_video(self.vae)
        # Of jobs that cannot run at the same time.
        self.turns = Turns() if family.runs_alone else None
        self.device: torch.device = placement.device
        self._placement = placement
        self.is_offloaded = config.offload != "none"
        self.dtype: torch.dtype = pipeline.dtype
        # Set by `fit_preview`.
        self.preview: LatentPreview | None = None
        # By name and by the scheduler whose config is their base; never used, but copied.
        self._schedulers: dict[tuple[Scheduler, Sigmas | None, int], SchedulerMixin] = {}
        self._uses_tables = config.step_tables
        for other in self._all_pipelines():
            keep_lookups(other, self.device)
        for module in self.modules():
            keep_module_lookups(module, self.device)
        if self.device.type == "cpu" and not self.compiled:
            # Not to text encoders: one may restore its replaced parts only at the end of its call.
            models = [module for module in self.modules() if isinstance(module, diffusers.ModelMixin)]
            add_break_points(models)
            if self.dtype != torch.float32:
                keep_rows_exact(models)
        self.preparation = Preparation(self._all_pipelines(), self.device)

    def _compile(self, config: ModelConfig, pipeline: DiffusionPipeline) -> list[CompiledRun]:
        """Compile the denoisers of a pipeline and of the refiner, as configured."""
        if config.compile in (None, "off"):
            return []
        compiled = []
        for part in (pipeline, *self._refiners.values()):
            denoiser = part.components.get("unet") or part.transformer
            gate = gate_of(denoiser)
            if gate is not None and not gate.has_buckets:
                compiled.append(compile_denoiser(denoiser, gate, config.compile))
        return compiled

    def pipeline(
        self,
        task: Task,
        scheduler: Scheduler,
        sigmas: Sigmas | None = None,
        *,
        controls: bool = False,
        fast_vae: bool = False,
        perturbed: bool = False,
    ) -> DiffusionPipeline:
        """Return a pipeline object for one job: it shares the modules of the model and has a new scheduler.

        Args:
            controls: whether the job has controls.
            fast_vae: whether the job uses the small VAE.
            perturbed: whether the job has perturbed-attention guidance.
        """
        if self.family.is_generic:
            base = self._pipelines[task]
            pipeline = copy_for_job(base)
            if scheduler is not Scheduler.MODEL:
                pipeline.scheduler = self._scheduler(scheduler, base.scheduler, sigmas)
            if fast_vae:
                pipeline.vae = self.fast_vae
            return pipeline
        pipelines = self._perturbed if perturbed and task in self._perturbed else self._pipelines
        pipeline = self.controlnets.pipeline(task) if controls else copy.copy(pipelines[task])
        pipeline.scheduler = self._scheduler(scheduler, pipeline.scheduler, sigmas)
        if fast_vae:
            pipeline.vae = self.fast_vae
        return pipeline

    def _scheduler(self, name: Scheduler, base: SchedulerMixin, sigmas: Sigmas | None) -> SchedulerMixin:
        """Return a new scheduler for one job. Creating it from a config takes 2 ms, copying it a hundredth of that."""
        key = name, sigmas, id(base)
        if key not in self._schedulers:
            made = on_host(make_scheduler(name, base, sigmas))
            self._schedulers[key] = with_tables(made) if self._uses_tables else made
        return unused_copy(self._schedulers[key])

    @property
    def batching(self) -> dict[str, Batching]:
        """How calls of each module by several jobs are merged, by component: of several the least exact."""
        if self.turns is not None:
            names = next(iter(self._pipelines.values())).components
            return {name: Batching.ALONE for name, part in names.items() if isinstance(part, torch.nn.Module)}
        parts = {"fast_vae": [self.fast_vae], "controlnet": self.controlnets.modules}
        for pipeline in (*self._pipelines.values(), *self._refiners.values()):
            for name, module in pipeline.components.items():
                parts.setdefault(name, []).append(module)
        for factor, upscaler in self.upscalers.items():
            parts[f"upscale.{factor}"] = [upscaler.pipeline.unet]
        found = {
            name: [Batching(gate.batching) for module in modules if (gate := gate_of(module))]
            for name, modules in parts.items()
        }
        return {name: max(values, key=list(Batching).index) for name, values in found.items() if values}

    def modules(self) -> list[torch.nn.Module]:
        """Return all modules with weights. Some share theirs."""
        parts = [part for pipeline in self._all_pipelines() for part in pipeline.components.values()]
        parts += [
            *self.controlnets.modules,
            *(part for annotator in self.annotators.values() for part in annotator.modules),
            *(self.matting.modules if self.matting else ()),
            *self.segmenters.modules,
        ]
        parts += self.adapters.weights
        if self.safety_checker is not None:
            parts.append(self.safety_checker.module)
        parts.append(self.fast_vae)
        return [part for part in parts if isinstance(part, torch.nn.Module)]

    def _all_pipelines(self) -> list[DiffusionPipeline]:
        pipelines = [*self._pipelines.values(), *self.controlnets.pipelines.values()]
        pipelines += [upscaler.pipeline for upscaler in self.upscalers.values()]
        return [*pipelines, *self._perturbed.values(), *self._refiners.values()]

    def saved_bytes(self, config: ModelConfig) -> int:
        """Return by how many bytes the weights of a model without weights become smaller by `quantize`."""
        quantizer = Quantizer(kinds=config.quantize)
        components = next(iter(self._pipelines.values())).components
        return sum(
            saved_bytes(module, kind)
            for name, module in components.items()
            if isinstance(module, torch.nn.Module) and (kind := quantizer.kind_of(name))
        )

    def dismantle(self) -> None:
        """Free the weights. No job may use the model any more.

        Modules and their gates refer to each other. The garbage collector would free them, but it takes a quarter of a
        second for all models and libraries, in which no thread runs, and they are excluded from it: see `freeze_gc`.
        """
        for part in {part for module in self.modules() for part in module.modules()}:
            part.__dict__.clear()

    def refiner(
        self, task: Task, scheduler: Scheduler, sigmas: Sigmas | None = None, *, fast_vae: bool = False
    ) -> DiffusionPipeline:
        """Return a pipeline object of the refiner for one job."""
        pipeline = copy.copy(self._refiners[task])
        pipeline.scheduler = self._scheduler(scheduler, pipeline.scheduler, sigmas)
        if fast_vae:
            pipeline.vae = self.fast_vae
        return pipeline

    def set_safety_checker(self, checker: ImageChecker | None) -> None:
        """Check the finished images of this model."""
        self.safety_checker = checker
        self.card = self.card.model_copy(update={"safety_checker": mode_of(checker)})

    def close(self) -> None:
        """Remove the hooks and files of `offload`. The model cannot be used afterwards."""
        self._placement.close()

    @torch.inference_mode()
    def set_loras(
        self,
        loras: Mapping[str, ComponentSource],
        files: Mapping[str, Path] | None = None,
        *,
        fingerprint: str = "",
    ) -> None:
        """Replace the LoRAs of the model, and update its card. Call it on the engine's thread, between steps.

        Jobs that were prepared before keep their LoRAs until they end, also those that are removed. LoRAs whose files
        have not changed are not read again.

        Args:
            loras: location by name of all LoRAs that the model then has.
            files: file of each LoRA, from `lora_files`, which can be called on another thread. Without it, this
                method looks them up, and the jobs in flight wait for requests to the hub and for downloads.
            fingerprint: of the model with these LoRAs.

        Raises:
            StartupError: if a LoRA cannot be loaded or does not fit the model. The model is then unchanged.
        """
        self.adapters = self.adapters.with_loras(loras, files)
        card = self.card.model_copy(update={"fingerprint": fingerprint})
        self.card = self.adapters.add_to_card(card, self._pipelines)

    @torch.inference_mode()
    def fit_preview(self) -> None:
        """Fit the preview of latents to the VAE."""
        # Of a generic family, it is not known what the latents in a callback are.
        if not self.is_video_vae and not self.family.is_generic:
            self.preview = LatentPreview.fit(self.vae, self.device, self.dtype)


@dataclass(frozen=True)
class ModelDescription:
    """Card and size of a model, known before its weights are loaded.

    Attributes:
        card: equal to the card of the loaded model.
        disk_bytes: size of its weight files; None if some of them are not downloaded yet.
        memory_bytes: size that its weights will have in memory.
        largest_bytes: size of the largest module, and of the ControlNets, which are used with the denoiser.
    """

    card: ModelCard
    disk_bytes: int | None
    memory_bytes: int
    largest_bytes: int


def describe_model(config: ModelConfig, *, device: str) -> ModelDescription:
    """Describe a model that `load_model` would load on `device`, without reading its weights.

    Raises:
        StartupError: if the model is not supported, or files are missing or damaged.
    """
    files = WeightFiles()
    with without_weights(files):
        model = load_model(config, device=device)
    memory = _bytes_of(model.modules()) - model.saved_bytes(config)
    largest = max(_bytes_of([module]) for module in model.modules()) + _bytes_of(model.controlnets.modules)
    return ModelDescription(
        card=model.card,
        disk_bytes=files.size if files.is_complete else None,
        memory_bytes=memory + model.adapters.file_bytes,
        largest_bytes=min(memory, largest),
    )


def _bytes_of(modules: Iterable[torch.nn.Module]) -> int:
    return sum(size for _, size in tensor_sizes(modules).values())


def load_model(config: ModelConfig, *, device: str) -> Model:
    """Load a model. Safetensors only, no remote code.

    Raises:
        StartupError: if the model is not supported or cannot be loaded.
    """
    label = f"cannot load model {config.name!r}"
    with reporting_failures(label):
        location = find_checkpoint(config) or PipelineLocation(config.source, config.revision, config.variant)
        family = family_of(location.index["_class_name"]) or generic_family(location.index)
        check_processors(location.index)
        if config.dtype is not None and (reason := why_no_dtype(config.dtype, device)):
            raise StartupError(f"`dtype`: {reason}; choose float16 or float32")
        dtype = getattr(torch, config.dtype or default_dtype(family.cuda_dtype, device))
        placement = Placement(config, device)
        check_compile(config, placement.device, family.name, has_fixed_shapes=family.fixed_shapes)
        first = next(iter(family.pipelines.values()))
        quantizer = Quantizer(device, str(placement.load_device), dtype, config.quantize)
        quantizer.check(components(location.index), config)
        source = location.file if isinstance(location, Checkpoint) else location.folder()
    with reporting_failures(label, lambda: memory_remedy(source, dtype, device)):
        if isinstance(location, Checkpoint):
            pipeline = location.load(
                first,
                device=placement.load_device,
                dtype=dtype,
                quantizer=quantizer,
                load_components=family.load_components,
            )
        else:
            loaded = dict(family.load_components(str(source)))
            if config.vae is not None:
                loaded["vae"] = load_vae(config.vae, source, dtype)
            pipeline = load_pipeline(
                first,
                location,
                device=placement.load_device,
                dtype=dtype,
                variant=config.variant,
                quantizer=quantizer,
                **loaded,
            )
        if Scheduler.MODEL not in family.schedulers:
            check_scheduler(pipeline.scheduler)
        if config.prediction_type is not None:
            pipeline.scheduler = with_prediction_type(pipeline.scheduler, config.prediction_type)
        model = Model(config, family, pipeline, placement)
        place = None if isinstance(location, Checkpoint) else location
        model.set_safety_checker(load_safety_checker(config, place, placement, dtype))
        return model


def _pipeline_of(kind: type[DiffusionPipeline], base: DiffusionPipeline, family: Family) -> DiffusionPipeline:
    if not family.is_generic:
        return build_pipeline(kind, base)
    if type(base) is kind:
        base.set_progress_bar_config(disable=True)
        return base
    # A pipeline may change the settings of its scheduler when it is built.
    parts = {name: part for name, part in base.components.items() if isinstance(part, SchedulerMixin)}
    return build_pipeline(kind, base, **copy.deepcopy(parts))


def _perturbed_pipelines(
    config: ModelConfig, family: Family, pipelines: Mapping[Task, DiffusionPipeline]
) -> dict[Task, DiffusionPipeline]:
    """Return the pipelines of a model with perturbed-attention guidance. Compiled denoisers cannot be changed."""
    if config.compile not in (None, "off"):
        return {}
    built: dict[Task, DiffusionPipeline] = {}
    for task, kind in family.pag_pipelines.items():
        if task in pipelines:
            pipeline: Any = build_pipeline(kind, pipelines[task])
            pipeline.perturbed = find_perturbed(pipeline)
            if pipeline.perturbed:
                built[task] = pipeline
    return built


def _compile_sizes(config: ModelConfig, card: ModelCard) -> tuple[tuple[int, int], ...]:
    """Return the sizes for which a model is compiled. Raises StartupError for one that the model cannot make."""
    for side in (side for size in config.compile_sizes for side in size):
        if side % card.size_multiple or not card.min_size <= side <= card.max_size:
            raise StartupError(
                f"`compile_sizes`: {side} is not a multiple of {card.size_multiple} from {card.min_size} to "
                f"{card.max_size}"
            )
    return config.compile_sizes or ((card.native_size, card.native_size),)
