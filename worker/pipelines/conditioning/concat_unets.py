"""Models whose denoiser takes the picture in as channels beside the latents: instructed edits, and inpainting UNets."""

from diffusers import DiffusionPipeline, UNet2DConditionModel

from img2img.domain.spec import Task

from ...errors import StartupError
from ..families import Family
from ..loading.components import build, is_pipeline, load_pipeline, load_unet
from ..loading.model_config import ComponentSource, ModelConfig


def task_of_unet(unet: UNet2DConditionModel, latent_channels: int) -> Task:
    """The task that a UNet was trained for, by its input channels: besides the noisy latents, those of the picture,
    and of a mask. Raises StartupError."""
    tasks = {
        latent_channels: Task.IMG2IMG,
        2 * latent_channels: Task.EDIT,
        2 * latent_channels + 1: Task.INPAINT,
    }
    takes = unet.config.in_channels
    if takes not in tasks:
        known = ", ".join(f"{channels} ({task})" for channels, task in tasks.items())
        raise StartupError(f"the UNet takes {takes} channels; this version serves {known}")
    return tasks[takes]


def pipeline_classes(family: Family, base: DiffusionPipeline) -> dict[Task, type[DiffusionPipeline]]:
    """Of the stock pipelines of a family, those that the model's own denoiser was trained for."""
    unet = base.components.get("unet")
    if unet is None:
        return dict(family.pipelines)
    task = task_of_unet(unet, base.vae.config.latent_channels)
    if task is Task.IMG2IMG:
        return {other: kind for other, kind in family.pipelines.items() if other is not Task.EDIT}
    known = {**family.pipelines, Task.EDIT: family.instruct_pix2pix}
    kind = known.get(task)
    return {task: kind} if kind is not None else {}


def load_concat_pipelines(entry: ModelConfig, family: Family, base: DiffusionPipeline) -> dict[Task, DiffusionPipeline]:
    """The pipelines of the parts `edit` and `inpaint`. Raises StartupError."""
    wanted = {
        Task.EDIT: (entry.edit, family.instruct_pix2pix),
        Task.INPAINT: (entry.inpaint, family.pipelines.get(Task.INPAINT)),
    }
    injected = {}
    for task, (part, kind) in wanted.items():
        if part is None:
            continue
        if kind is None or "unet" not in base.components:
            raise StartupError(f"model {entry.name!r}: a {family.name} takes no part `{task}`")
        injected[task] = _load(entry, task, part, kind, base)
    return injected


def _load(
    entry: ModelConfig, task: Task, part: ComponentSource, kind: type[DiffusionPipeline], base: DiffusionPipeline
) -> DiffusionPipeline:
    """A part that is a whole pipeline keeps its own autoencoder and text encoder; a UNet is given the model's."""
    if is_pipeline(part):
        other = load_pipeline(part, base.device, base.dtype)
        pipeline = build(kind, other)
    else:
        pipeline = build(kind, base, unet=load_unet(part, base.device, base.dtype))
    serves = task_of_unet(pipeline.unet, pipeline.vae.config.latent_channels)
    if serves is not task:
        raise StartupError(f"model {entry.name!r}: the UNet at {part.source} is one for {serves}, not {task}")
    return pipeline
