"""Loads one model: reads the weights on the calling thread, and warms it up on the engine's thread."""

import logging
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from img2img.domain.conditioning import InpaintRegion
from img2img.domain.model_card import ModelCard
from img2img.domain.model_config import ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import EditSpec, Img2ImgSpec, InpaintSpec, JobSpec

from ..devices import memory_in_words
from ..engine.engine import Engine
from ..engine.errors import is_out_of_memory
from ..engine.row_buckets import buckets_up_to
from ..engine.task import EngineTask, TaskFunction
from ..images.inputs import Inputs
from ..pipelines.conditioning.loras import lora_files
from ..pipelines.denoise import make_task_function
from ..pipelines.loading.compilation import CompiledRun
from ..pipelines.loading.failures import reporting_failures
from ..pipelines.loading.fingerprint import fingerprint_of
from ..pipelines.loading.quantization import check_loras_with
from ..pipelines.loading.weightless import WeightFiles, counting
from ..pipelines.model import Model, ModelDescription, describe_model, load_model
from .memory_mode import MemoryMode, configure_memory
from .model_memory import MemoryBudget

log = logging.getLogger(__name__)

SMALLER = "set a `dtype` of 2 bytes, or serve a smaller model"


class ModelLoader:
    """Loads models while the engine runs the jobs of others.

    Weights are read on the thread that calls. Forward passes run on the engine's thread only, because each thread that
    calls torch has its own OpenMP threads: with more of them than cores, GNU OpenMP suspends them after each of the
    thousand parallel loops of a UNet pass. The warm-up is therefore a task of the engine, beside those of jobs.

    Args:
        engine: runs the warm-up.
        device: where the models are loaded.
        report: gets a line at each stage.
        mode: how memory is saved.
    """

    def __init__(
        self, engine: Engine, device: str, report: Callable[[str], None], *, mode: MemoryMode = "auto"
    ) -> None:
        self._mode = mode
        self.device = device
        self.report = report
        self._engine = engine

    def describe(self, config: ModelConfig) -> ModelDescription:
        """Describe a model without loading it. Raises StartupError."""
        return describe_model(config, device=self.device)

    def with_mode(self, config: ModelConfig, needed: int, largest: int, budget: MemoryBudget) -> ModelConfig:
        """Return the configuration with which a model fits into the free memory, see `configure_memory`."""
        return configure_memory(config, self._mode, self.device, needed, largest, budget.free_bytes())

    def load(self, config: ModelConfig, files: WeightFiles) -> Model:
        """Load a model and warm it up.

        Args:
            files: counts the bytes that are read.

        Raises:
            StartupError: it cannot be loaded, or its first forward pass fails.
        """
        with counting(files):
            model = load_model(config, device=self.device)
        self.report(f"warming up {config.name}")
        with reporting_failures(
            f"cannot warm up model {config.name!r}", lambda: f"{memory_in_words(self.device)}; {SMALLER}"
        ):
            warm_up(model, self._engine, self.report)
        return model

    def set_loras(self, model: Model, config: ModelConfig) -> None:
        """Replace the LoRAs of a model while its jobs run.

        Raises:
            StartupError: a LoRA cannot be loaded or does not fit. The model then has the LoRAs from before.
        """
        self.report(f"loading LoRAs of {config.name}: {', '.join(config.loras) or 'none'}")
        with reporting_failures(f"model {config.name!r}"):
            check_loras_with(config.quantize, config)
            files = lora_files(config.loras)
            fingerprint = fingerprint_of(config, model.device, model.dtype)
            _run(self._engine, lambda _task: model.set_loras(config.loras, files, fingerprint=fingerprint))


def warm_up(model: Model, engine: Engine, report: Callable[[str], None] = lambda _line: None) -> None:
    """Render an image with one step: memory is allocated, kernels are chosen, and the memory of a row is measured.

    On a GPU also one of the largest size, because not all kernels need memory in proportion to the size. Offloaded
    weights would be measured as memory of a row, so the limit of such a model is only lowered when memory runs out.

    Args:
        engine: runs on another thread.
        report: gets a line at each stage.

    Raises:
        Exception: the error of the forward pass.
    """
    card = model.card
    _run(engine, lambda _task: model.fit_preview())
    sizes = {card.native_size} if model.device.type == "cpu" else {card.native_size, card.max_size}
    for size in sorted(sizes):
        _run(engine, _warm_up_function(model, size, size), measures_memory=not model.is_offloaded)
    compile_shapes(model, engine, report)
    checker = model.safety_checker
    if checker is not None:
        prepared = checker.prepare(np.zeros((card.native_size, card.native_size, 3), np.uint8))
        _run(engine, lambda _task: checker.is_flagged(prepared), measures_memory=not model.is_offloaded)


def compile_shapes(model: Model, engine: Engine, report: Callable[[str], None]) -> None:
    """Compile the denoisers for each number of rows that a call can have, at the sizes of `compile_sizes`.

    A worker that has done so before finds the result in its data directory.

    Args:
        report: gets a line at each number of rows.
    """
    card = model.card
    rows_of_a_job = 3 if Task.EDIT in card.tasks and card.image_guidance else card.guidance_rows
    buckets = buckets_up_to(min(engine.slots * rows_of_a_job, engine.max_rows))
    for width, height in model.compile_sizes if model.compiled else ():
        for compiled in model.compiled:
            compiled.begin_size()
        _run(engine, _warm_up_function(model, width, height))
        for rows in buckets:
            report(f"compiling {card.name} at {width}x{height} for {rows} rows, up to {buckets[-1]}")
            try:
                for compiled in model.compiled:
                    _run(engine, partial(_compile, compiled, rows))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("%s: calls of %d rows do not fit into memory", card.name, rows)
                break


def _compile(compiled: CompiledRun, rows: int, _task: EngineTask) -> None:
    compiled.warm_up(rows)


def _run(engine: Engine, function: TaskFunction, *, measures_memory: bool = False) -> None:
    """Wait for a task of the engine, and raise its error."""
    task = engine.run_task(function, measures_memory=measures_memory)
    if task.error is not None:
        raise task.error


def _warm_up_function(model: Model, width: int, height: int) -> TaskFunction:
    inputs = Inputs(torch.zeros(1, 3, height, width), torch.ones(1, 1, height, width))
    return make_task_function(model, _warm_up_spec(model.card, width, height), inputs, 0)


def _warm_up_spec(card: ModelCard, width: int, height: int) -> JobSpec:
    generation: dict[str, Any] = {
        "model": card.name,
        "image": sha256(b"").hexdigest(),
        "width": width,
        "height": height,
        "guidance_scale": 2 if card.guidance else 1,
        "num_inference_steps": 1,
        "scheduler": card.default_scheduler,
        "sigmas": card.default_sigmas,
        "seed": 0,
    }
    match card.tasks[0]:
        case Task.EDIT:
            scale = 1.5 if card.image_guidance else None
            return EditSpec(instruction="", image_guidance_scale=scale, **generation)
        case Task.INPAINT:
            region = InpaintRegion(canvas=(width, height), box=(0, 0, width, height))
            return InpaintSpec(prompt="", strength=1, region=region, **generation)
    if card.refiner:
        # One step of the model, and one of the refiner.
        return Img2ImgSpec(prompt="", strength=1, denoising_end=0.5, **{**generation, "num_inference_steps": 2})
    return Img2ImgSpec(prompt="", strength=1, **generation)
