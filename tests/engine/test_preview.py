"""A preview approximates the decoded image at the size of the latents."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from img2img.worker.images.inputs import to_tensor
from img2img.worker.pipelines.loading.served_models import config_for
from img2img.worker.pipelines.model import load_model

INPUT = Path(__file__).parents[2] / "examples" / "input.png"


@torch.inference_mode()
def test_preview_of_demo_model_has_the_colours_of_the_image() -> None:
    model = load_model(config_for("demo"), device="cpu")
    model.fit_preview()
    assert model.preview is not None
    image = Image.open(INPUT).convert("RGB").resize((128, 128))
    latents = model.vae.encode(2 * to_tensor(image) - 1).latent_dist.mode() * model.vae.config.scaling_factor
    with Image.open(io.BytesIO(model.preview.jpeg(latents))) as preview:
        assert preview.format == "JPEG"
        assert preview.size == (32, 32)
        pixels = np.asarray(preview, np.float64)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BOX), np.float64)
    assert np.corrcoef(pixels.ravel(), expected.ravel())[0, 1] > 0.8
    assert np.abs(pixels - expected).mean() < 30
