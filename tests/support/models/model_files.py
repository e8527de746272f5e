"""Tiny models that are loaded from files as those of published kinds are."""

from dataclasses import replace
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.worker.pipelines.loading.checkpoint_layout import Layout
from img2img.worker.pipelines.loading.checkpoint_layouts import LAYOUTS
from img2img.worker.pipelines.model import Model, load_model
from tests.support.models.transformer_files import Weights


def load(file: Path, **keys: object) -> Model:
    """Load a model on the CPU.

    Args:
        keys: of the model file.
    """
    return load_model(ModelConfig(name="photo", source=str(file), **keys), device="cpu")  # type: ignore[arg-type]


def part(path: Path) -> ComponentSource:
    return ComponentSource(source=str(path))


def write(weights: Weights, file: Path) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, file)
    return file


def layout_of(pipeline: DiffusionPipeline, kind: str) -> Layout:
    """Return the layout of a kind with the configurations of a tiny pipeline, and the tokenizers of the package."""
    denoiser = pipeline.components.get("unet") or pipeline.transformer
    return replace(
        LAYOUTS[kind],
        denoiser={**denoiser.config, "_class_name": type(denoiser).__name__},
        vae={**pipeline.vae.config, "_class_name": "AutoencoderKL"},
        text_encoders={
            name: {**module.config.to_dict(), "architectures": [type(module).__name__]}
            for name, module in pipeline.components.items()
            if name.startswith("text_encoder")
        },
    )
