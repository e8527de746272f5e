"""Loading: a diffusers folder or hub id becomes a warm pipeline with its heavy modules behind gates."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, AutoPipelineForImage2Image, DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.utils import _pytree as pytree

from app.contract.conditions import ControlType
from app.contract.models import ModelCard, size_buckets
from app.contract.spec import Scheduler, Task
from worker.control_maps import MAKERS
from worker.engine import Gate
from worker.engine.calls import splittable
from worker.errors import StartupError
from worker.pipelines.adapters import Adapters
from worker.pipelines.annotators import load_annotators
from worker.pipelines.controlnets import ControlNets
from worker.pipelines.injection import load_injected, own_kinds
from worker.pipelines.model_file import ModelEntry, is_path
from worker.pipelines.parts import build, load_pipeline
from worker.pipelines.preview import LatentPreview
from worker.pipelines.schedulers import make_scheduler, name_of
from worker.pipelines.upscalers import Upscaler

for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()

# Prompts repeat, and an embedding costs no more to keep than it cost to make.
PROMPT_MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Family:
    """A kind of model: its name, and the stock pipeline of each task that its own parts are enough for."""

    name: str
    pipelines: Mapping[Task, type[DiffusionPipeline]]


FAMILIES = {
    "StableDiffusionImg2ImgPipeline": Family(
        "stable-diffusion",
        {
            Task.IMG2IMG: diffusers.StableDiffusionImg2ImgPipeline,
            Task.INPAINT: diffusers.StableDiffusionInpaintPipeline,
        },
    ),
    "StableDiffusionXLImg2ImgPipeline": Family(
        "stable-diffusion-xl",
        {
            Task.IMG2IMG: diffusers.StableDiffusionXLImg2ImgPipeline,
            Task.INPAINT: diffusers.StableDiffusionXLInpaintPipeline,
        },
    ),
    "StableDiffusionInstructPix2PixPipeline": Family(
        "stable-diffusion", {Task.EDIT: diffusers.StableDiffusionInstructPix2PixPipeline}
    ),
    "StableDiffusionXLInstructPix2PixPipeline": Family(
        "stable-diffusion-xl", {Task.EDIT: diffusers.StableDiffusionXLInstructPix2PixPipeline}
    ),
}
TILED_UPSCALES = (2, 4)  # what image-to-image in tiles is offered for

splittable(
    DiagonalGaussianDistribution,
    lambda dist: ([dist.parameters], dist.deterministic),
    lambda leaves, deterministic: DiagonalGaussianDistribution(leaves[0], deterministic),
)


class Model:
    """A loaded model: its card, its gated modules, and a pipeline object of its own for every job."""

    def __init__(self, entry: ModelEntry, pipeline: DiffusionPipeline) -> None:
        """Loads the parts that the entry names. Raises StartupError."""
        self.adapters = Adapters(entry, pipeline)
        _put_gates(pipeline)
        family = FAMILIES[type(pipeline).__name__]
        kinds = own_kinds(family.name, family.pipelines, pipeline)
        self._pipelines = {task: build(kind, pipeline) for task, kind in kinds.items()}
        self._pipelines |= load_injected(entry, family.name, family.pipelines, pipeline)
        enlarging = {times: load_pipeline(p, pipeline.device, pipeline.dtype) for times, p in entry.upscale.items()}
        for part in (*self._pipelines.values(), *enlarging.values()):
            _put_gates(part)
        self.upscalers = {times: Upscaler(times, part) for times, part in sorted(enlarging.items())}
        self._controlnets = ControlNets(entry, family.name, pipeline)
        self.annotators = load_annotators(entry, pipeline.device)
        card = _card(
            entry, pipeline, tuple(self._pipelines), self.upscalers, self._controlnets.types, tuple(self.annotators)
        )
        self.card = self.adapters.on_card(card, self._pipelines)
        self.vae = pipeline.vae
        self.latent_scale: int = pipeline.vae_scale_factor  # pixels along a side of a latent
        self.device: torch.device = pipeline.device
        self.dtype: torch.dtype = pipeline.dtype
        self.preview: LatentPreview | None = None  # once `fit_preview` has been called

    def pipeline(self, task: Task, scheduler: Scheduler, controls: Sequence[ControlType] = ()) -> DiffusionPipeline:
        """A pipeline object that shares this model's modules and has a scheduler of its own."""
        own = self._controlnets.pipeline(task, controls) if controls else copy.copy(self._pipelines[task])
        own.scheduler = make_scheduler(scheduler, own.scheduler)
        return own

    @torch.inference_mode()
    def fit_preview(self) -> None:
        """Learns to show latents as small pictures."""
        self.preview = LatentPreview.fit(self.vae, self.device, self.dtype)


def load_model(entry: ModelEntry, *, device: str) -> Model:
    """Loads a model: a diffusers folder or a hub id, and its parts. Safetensors only, no remote code.

    Raises StartupError with one line that says what is wrong.
    """
    default = "float16" if torch.device(device).type == "cuda" else "float32"
    try:
        pipeline = _load(
            _locate(entry.source),
            dtype=getattr(torch, entry.dtype or default),
            use_safetensors=True,
            revision=entry.revision,
            variant=entry.variant,
        ).to(device)
    except (OSError, ValueError) as error:
        raise StartupError(f"cannot load model {entry.name!r}: {str(error).strip().splitlines()[0]}") from error
    if type(pipeline).__name__ not in FAMILIES:
        known = ", ".join(dict.fromkeys(family.name for family in FAMILIES.values()))
        raise StartupError(f"model {entry.name!r} is a {type(pipeline).__name__}; this version serves {known}")
    return Model(entry, pipeline)


def _load(source: str, *, revision: str | None, **options: Any) -> DiffusionPipeline:
    """As its own class where that is served as it is; else as the image-to-image pipeline of its family."""
    kind = DiffusionPipeline.load_config(source, revision=revision).get("_class_name")
    loader = DiffusionPipeline if kind in FAMILIES else AutoPipelineForImage2Image
    return loader.from_pretrained(source, revision=revision, **options)


def _locate(source: str) -> str:
    path = Path(source).expanduser()
    if is_path(source) and not (path / "model_index.json").is_file():
        raise StartupError(f"no diffusers model at {path}: there is no model_index.json in it")
    return str(path) if path.exists() else source


def _put_gates(pipeline: DiffusionPipeline) -> None:
    """Replaces what the heavy modules do by gates that do it in company. Those that have gates already keep them."""
    for name, module in pipeline.components.items():
        if name.startswith("text_encoder") and module is not None and not isinstance(module.forward, Gate):
            module.forward = Gate("encode_prompt", module.forward, remember_bytes=PROMPT_MEMORY_BYTES)
    if not isinstance(pipeline.unet.forward, Gate):
        pipeline.unet.forward = Gate("denoise", pipeline.unet.forward)
    vae = pipeline.vae
    if isinstance(vae.decode, Gate):
        return
    if vae.config.get("force_upcast"):
        # Stock pipelines cast such a VAE to fp32 and back around every use. Shared by jobs at different places, it
        # would be caught halfway; so it is in fp32 for good, and its gate casts what goes in and comes out.
        vae.to(torch.float32)
        vae.register_to_config(force_upcast=False)
    vae.encode = Gate("encode", _in_dtype_of(vae, vae.encode))
    # The KL autoencoder takes a generator for decode and does not use it.
    vae.decode = Gate("decode", _in_dtype_of(vae, vae.decode), ignore=("generator",))


def _in_dtype_of(vae: AutoencoderKL, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` for a tensor of any float type: computes in the module's type, answers in the caller's."""

    def cast_around(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.dtype == vae.dtype:
            return run(x, *args, **kwargs)
        output = run(x.to(vae.dtype), *args, **kwargs)
        return pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(x.dtype), output)

    return cast_around


def _card(
    entry: ModelEntry,
    pipeline: DiffusionPipeline,
    tasks: tuple[Task, ...],
    upscalers: Mapping[int, Upscaler],
    controls: tuple[ControlType, ...],
    annotated: tuple[ControlType, ...],
) -> ModelCard:
    family = FAMILIES[type(pipeline).__name__]
    scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    multiple = max(8, scale)  # the pipelines ask for multiples of 8 whatever the autoencoder
    native = pipeline.unet.config.sample_size * scale
    upscales = sorted({*upscalers, *(TILED_UPSCALES if Task.IMG2IMG in tasks else ())})
    more = [task for task, can in ((Task.CONTROL, controls), (Task.UPSCALE, upscales)) if can]
    return ModelCard(
        name=entry.name,
        family=family.name,
        tasks=(*tasks, *more),
        native_size=native,
        size_multiple=multiple,
        min_size=native // 2,
        max_size=native * 2,
        sizes=size_buckets(native, multiple),
        schedulers=tuple(Scheduler),
        default_scheduler=entry.scheduler or name_of(pipeline.scheduler) or Scheduler.DPMPP_2M,
        default_steps=entry.steps or 30,
        default_guidance_scale=entry.guidance_scale or 7.5,
        controls=controls,
        preprocessors=(*MAKERS, *annotated),  # maps that need no model are made next to any model
        upscales=tuple(upscales),
        upscalers=tuple(upscaler.card for upscaler in upscalers.values()),
        dtype=str(pipeline.unet.dtype).removeprefix("torch."),
        revision=entry.revision,
    )
