"""Loading: a diffusers folder or hub id becomes a warm pipeline with its heavy modules behind gates."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from img2img.domain.conditioning import ControlType
from img2img.domain.model_card import ModelCard, size_buckets
from img2img.domain.spec import Scheduler, Task

from ..errors import StartupError
from ..images.control_maps import PREPROCESSORS
from .conditioning.adapters import Adapters
from .conditioning.annotators import load_annotators
from .conditioning.concat_unets import load_concat_pipelines, pipeline_classes
from .conditioning.controlnets import ControlNets
from .conditioning.upscalers import Upscaler, load_upscalers
from .families import FAMILIES, Family, family_of
from .gates import install_gates
from .image_processors import check_processors
from .loading.components import build
from .loading.model_config import ModelConfig, is_path
from .preview import LatentPreview
from .schedulers import make_scheduler, name_of

for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()
    library.utils.logging.disable_default_handler()  # their lines go where ours go,
    library.utils.logging.enable_propagation()
    library.utils.logging.set_verbosity_error()  # and their warnings nowhere: they quote what is cut off a long prompt

TILED_UPSCALES = (2, 4)  # what image-to-image in tiles is offered for


class Model:
    """A loaded model: its card, its gated modules, and a pipeline object of its own for every job."""

    def __init__(self, entry: ModelConfig, family: Family, pipeline: DiffusionPipeline) -> None:
        """Loads the parts that the entry names. Raises StartupError.

        pipeline: of the family's first task, its modules on their device; they get gates.
        """
        self.family = family
        self.adapters = Adapters(entry, pipeline, family)
        install_gates(pipeline, family.gate_denoiser)
        kinds = pipeline_classes(family, pipeline)
        self._pipelines = {task: build(kind, pipeline) for task, kind in kinds.items()}
        self._pipelines |= load_concat_pipelines(entry, family, pipeline)
        enlarging = load_upscalers(entry, family, pipeline)
        for part in (*self._pipelines.values(), *enlarging.values()):
            install_gates(part, family.gate_denoiser)
        self.upscalers = {
            times: Upscaler(times, part, entry.upscale[times], pipeline) for times, part in enlarging.items()
        }
        self._controlnets = ControlNets(entry, family, pipeline)
        self.annotators = load_annotators(entry, pipeline.device)
        card = _card(entry, family, pipeline).model_copy(
            update=_card_of_parts(
                tuple(self._pipelines), pipeline, self.upscalers, self._controlnets.types, tuple(self.annotators)
            )
        )
        self.card = self.adapters.on_card(card, self._pipelines)
        self.vae = pipeline.vae
        self.is_video_vae = family.video_vae
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
        if not self.is_video_vae:
            self.preview = LatentPreview.fit(self.vae, self.device, self.dtype)


def load_model(entry: ModelConfig, *, device: str) -> Model:
    """Loads a model: `demo`, a diffusers folder or a hub id. Safetensors only, no remote code.

    Raises StartupError with one line that says what is wrong.
    """
    source, on_cuda = _locate(entry.source), torch.device(device).type == "cuda"
    try:
        config = DiffusionPipeline.load_config(source, revision=entry.revision)
        family = _family(entry.name, config["_class_name"])
        check_processors(entry.name, config)
        first = next(iter(family.pipelines.values()))
        pipeline = first.from_pretrained(
            source,
            dtype=getattr(torch, entry.dtype or (family.cuda_dtype if on_cuda else "float32")),
            use_safetensors=True,
            revision=entry.revision,
            variant=entry.variant,
            **family.load_components(source, entry.revision),
        ).to(device)
    except (OSError, ValueError) as error:
        raise StartupError(f"cannot load model {entry.name!r}: {str(error).strip().splitlines()[0]}") from error
    return Model(entry, family, pipeline)


def _family(name: str, class_name: str) -> Family:
    family = family_of(class_name)
    if family is None:
        known = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
        raise StartupError(f"model {name!r} is a {class_name}; this version serves {known}")
    return family


def _locate(source: str) -> str:
    path = Path(source).expanduser()
    if is_path(source) and not (path / "model_index.json").is_file():
        raise StartupError(f"no diffusers model at {path}: there is no model_index.json in it")
    return str(path) if path.exists() else source


def _card(entry: ModelConfig, family: Family, pipeline: DiffusionPipeline) -> ModelCard:
    scale = pipeline.vae_scale_factor
    multiple = max(8, scale * family.patch_size)  # the pipelines ask for multiples of 8 whatever the autoencoder
    native = _latent_size(pipeline) * scale
    guidance = family.has_guidance(pipeline) if entry.guidance is None else entry.guidance
    return ModelCard(
        name=entry.name,
        family=family.name,
        tasks=tuple(family.pipelines),
        native_size=native,
        size_multiple=multiple,
        min_size=native // 2,
        max_size=native * 2,
        sizes=family.sizes or size_buckets(native, multiple),
        schedulers=family.schedulers,
        default_scheduler=entry.scheduler or _own_scheduler(family, pipeline),
        default_steps=entry.steps or family.steps,
        default_guidance_scale=(entry.guidance_scale or family.guidance_scale) if guidance else 1.0,
        negative_prompt=family.negative_prompt and guidance,  # it is guidance that a negative prompt works by
        guidance=guidance,
        guidance_rows=family.guidance_rows,
        denoising_start=family.denoising_start,
        prompt_weighting=family.clip_prompts,
        image_guidance=family.image_guidance,
        dtype=str(pipeline.components.get("unet", pipeline.components.get("transformer")).dtype).removeprefix("torch."),
        revision=entry.revision,
    )


def _card_of_parts(
    tasks: tuple[Task, ...],
    pipeline: DiffusionPipeline,
    upscalers: Mapping[int, Upscaler],
    controls: tuple[ControlType, ...],
    annotated: tuple[ControlType, ...],
) -> dict[str, object]:
    """What the parts of a model add to its card."""
    tiled = TILED_UPSCALES if Task.IMG2IMG in tasks and "unet" in pipeline.components else ()
    upscales = sorted({*upscalers, *tiled})
    more = [task for task, can in ((Task.CONTROL, controls), (Task.UPSCALE, upscales)) if can]
    return {
        "tasks": (*tasks, *more),
        "controls": controls,
        "preprocessors": (*PREPROCESSORS, *annotated),  # maps that need no model are made next to any model
        "upscales": tuple(upscales),
        "upscalers": tuple(upscaler.card for upscaler in upscalers.values()),
    }


def _latent_size(pipeline: DiffusionPipeline) -> int:
    """Latent pixels along a side of the square that the model was trained on."""
    if "unet" in pipeline.components:
        return int(pipeline.unet.config.sample_size)
    return int(getattr(pipeline, "default_sample_size", 128))


def _own_scheduler(family: Family, pipeline: DiffusionPipeline) -> Scheduler:
    """The model's own scheduler, or the nearest that requests can name."""
    own = name_of(pipeline.scheduler)
    if own in family.schedulers:
        return own
    return Scheduler.DPMPP_2M if Scheduler.DPMPP_2M in family.schedulers else family.schedulers[0]
