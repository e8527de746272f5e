"""Train the demo model: `python -m img2img.demo_model.train`. Uses a GPU if there is one. Can be resumed."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from .autoencoder import encode_all, polish_decoder, train_autoencoder
from .dataset import crude_images, rendered_images
from .diffusion import train_diffusion
from .recipe import Recipe, recipe_for
from .weights_folder import write_weights
from .workers import default_worker_count, is_first_worker, run_workers, wait_for_workers

HERE = Path(__file__).parent


def main() -> None:
    """Render the images, then train with one worker per core (one on a GPU)."""
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = _recipe(arguments, device)
    rendered_images(arguments.work_dir, recipe.images)
    crude_images(arguments.work_dir, recipe.crude_images)
    workers = arguments.workers or default_worker_count(device)
    run_workers(workers, partial(train, recipe, arguments.work_dir, arguments.out, device))


def train(recipe: Recipe, work_dir: Path, out: Path, device: torch.device) -> None:
    """Train the autoencoder, encode the images once, train the denoiser on the latents, write the model folder."""
    rendered = rendered_images(work_dir, recipe.images)
    crude = crude_images(work_dir, recipe.crude_images)
    vae = train_autoencoder(recipe, rendered, crude, work_dir, device)
    latents = encode_all(vae, rendered, work_dir, device)
    denoiser = train_diffusion(recipe, latents, work_dir, device)
    polish_decoder(recipe, vae, rendered, crude, work_dir, device)
    if is_first_worker():
        write_weights(out, vae, denoiser)
    wait_for_workers()


def _recipe(arguments: argparse.Namespace, device: torch.device) -> Recipe:
    recipe = recipe_for(device)
    return replace(
        recipe,
        autoencoder=replace(recipe.autoencoder, minutes=arguments.autoencoder_minutes or recipe.autoencoder.minutes),
        diffusion=replace(recipe.diffusion, minutes=arguments.diffusion_minutes or recipe.diffusion.minutes),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=HERE / ".work", help="folder of intermediate files")
    parser.add_argument("--out", type=Path, default=HERE / "weights", help="the diffusers folder to write")
    parser.add_argument("--autoencoder-minutes", type=float, help="how long to train the autoencoder")
    parser.add_argument("--diffusion-minutes", type=float, help="how long to train the UNet and the text encoder")
    parser.add_argument("--workers", type=int, help="training processes; by default one per core, or one on a GPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
