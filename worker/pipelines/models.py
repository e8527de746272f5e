"""Loading: a diffusers folder or hub id becomes a warm pipeline with its heavy modules behind gates."""

import copy
import importlib.util
import inspect
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from app.contract.models import ModelCard, model_name, size_buckets
from app.contract.spec import Scheduler, Task
from worker.errors import StartupError
from worker.pipelines.families import FAMILIES, Family, family_of
from worker.pipelines.gates import put_gates
from worker.pipelines.model_file import ModelEntry
from worker.pipelines.schedulers import make_scheduler, name_of

for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()


class Model:
    """A loaded model: its card, its gated modules, and a pipeline object of its own for every job."""

    def __init__(self, entry: ModelEntry, family: Family, pipeline: DiffusionPipeline) -> None:
        """pipeline: of the family's first task, its modules on their device; they get gates."""
        put_gates(pipeline, family.shared)
        self.family = family
        self._scheduler = pipeline.scheduler
        self._pipelines = {task: _built(kind, pipeline) for task, kind in family.pipelines.items()}
        self.card = _card(entry, family, pipeline)
        self.vae = pipeline.vae
        self.is_video_vae = isinstance(self.vae, diffusers.AutoencoderKLQwenImage)
        self.device: torch.device = pipeline.device
        self.dtype: torch.dtype = pipeline.dtype

    def pipeline(self, task: Task, scheduler: Scheduler) -> DiffusionPipeline:
        """A pipeline object that shares this model's modules and has a scheduler of its own."""
        own = copy.copy(self._pipelines[task])
        own.scheduler = make_scheduler(scheduler, self._scheduler)
        return own


def _built(kind: type[DiffusionPipeline], base: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline of that kind, of the parts and settings of another one."""
    known = {**base.config, **base.components}
    arguments = inspect.signature(kind).parameters
    pipeline: DiffusionPipeline = kind(**{name: known.get(name, a.default) for name, a in arguments.items()})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_model(entry: ModelEntry, *, device: str) -> Model:
    """Loads a model: `demo`, a diffusers folder or a hub id. Safetensors only, no remote code.

    Raises StartupError with one line that says what is wrong.
    """
    source, on_cuda = _locate(entry.source), torch.device(device).type == "cuda"
    try:
        family = _family(entry.name, DiffusionPipeline.load_config(source, revision=entry.revision)["_class_name"])
        first = next(iter(family.pipelines.values()))
        pipeline = first.from_pretrained(
            source,
            dtype=getattr(torch, entry.dtype or (family.cuda_dtype if on_cuda else "float32")),
            use_safetensors=True,
            revision=entry.revision,
            variant=entry.variant,
        ).to(device)
    except (OSError, ValueError) as error:
        raise StartupError(f"cannot load model {entry.name!r}: {str(error).strip().splitlines()[0]}") from error
    return Model(entry, family, pipeline)


def _family(name: str, class_name: str) -> Family:
    family = family_of(class_name)
    if family is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise StartupError(f"model {name!r} is a {class_name}; this version serves {known}")
    return family


def _locate(source: str) -> str:
    if source == "demo":
        spec = importlib.util.find_spec("demo_model")
        if spec is None or spec.origin is None:
            raise StartupError("the demo model is not installed; name another with --model")
        return str(Path(spec.origin).parent / "weights")
    path = Path(source).expanduser()
    if model_name(source) != source and not (path / "model_index.json").is_file():
        raise StartupError(f"no diffusers model at {path}: there is no model_index.json in it")
    return str(path) if path.exists() else source


def _card(entry: ModelEntry, family: Family, pipeline: DiffusionPipeline) -> ModelCard:
    scale = pipeline.vae_scale_factor
    multiple = max(8, scale * family.patch)  # the pipelines ask for multiples of 8 whatever the autoencoder
    native = _latent_size(pipeline) * scale
    guidance = family.guidance(pipeline) if entry.guidance is None else entry.guidance
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
        prompt_weighting=family.clip_prompts,
        image_guidance=family.image_guidance,
        dtype=str(pipeline.components.get("unet", pipeline.components.get("transformer")).dtype).removeprefix("torch."),
        revision=entry.revision,
    )


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
