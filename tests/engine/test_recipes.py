"""The recipes of docs/models.md and docs/how-to/ run, with tiny random models in place of their sources."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from diffusers.loaders import single_file_utils
from gguf import GGMLQuantizationType as Type

from img2img.domain.conditioning import Lora
from img2img.domain.parameters import Task
from img2img.models_file import read_models_file
from img2img.worker.engine.engine import Engine
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.loading.checkpoint_layouts import LAYOUTS
from img2img.worker.pipelines.loading.lora_folder import LoraFolders
from img2img.worker.pipelines.model import load_model
from tests.engine.test_file_parts import tiny
from tests.engine.test_gguf_files import write_gguf
from tests.engine.test_transformer_files import flux
from tests.support.engines import random_tensor, run_on
from tests.support.models.model_files import layout_of, write
from tests.support.models.single_files import text_encoder_file_weights, vae_weights, write_checkpoint
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_controlnets import tiny_controlnet
from tests.support.models.tiny_families import tiny_flux, tiny_klein, tiny_qwen_edit, tiny_z_image
from tests.support.models.tiny_models import autoencoder, tiny_sd, tiny_sdxl
from tests.support.pages import page
from tests.support.specs import make_spec

SECTION = page("docs/models.md").partition("\n## Recipes\n")[2].partition("\n## ")[0]
SECTION += page("docs/how-to/sdxl-file.md") + page("docs/how-to/flux-on-24-gb.md")
RECIPES = {
    re.search(r"\[models\.([\w-]+)\]", text)[1]: text  # type: ignore[index]
    for text in re.findall(r"^```toml\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
}
Make = Callable[[Path], Path]
SIDE = 64


class TinySources:
    """Makes a tiny model of the layout of each source, once."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._patch = monkeypatch

    def make(self, source: str) -> Path:
        """Return the folder or file for a source. Raises KeyError for one without a tiny model."""
        path = self.folder / source.removeprefix("./").replace("/", "--")
        return path if path.exists() else self._makers()[source](path)

    def _makers(self) -> Mapping[str, Make]:
        return {
            "./dreamshaper_8.safetensors": self.sd_file(4),
            "./dreamshaper_8Inpainting.safetensors": self.sd_file(9),
            "./vae-ft-mse-840000-ema-pruned.safetensors": lambda path: write(vae_weights(autoencoder()), path),
            "./checkpoints/juggernautXL.safetensors": self.sdxl_file,
            "./loras": self.lora_folder,
            "madebyollin/sdxl-vae-fp16-fix": lambda path: autoencoder().save_pretrained(path) or path,
            "stable-diffusion-v1-5/stable-diffusion-v1-5": tiny_sd,
            "lllyasviel/control_v11p_sd15_canny": self.controlnet,
            "lllyasviel/control_v11f1e_sd15_tile": self.controlnet,
            "black-forest-labs/FLUX.1-dev": tiny_flux,
            "./flux1-dev-Q4_K_S.gguf": self.flux_gguf,
            "./clip_l.safetensors": lambda path: self.flux_part(path, "text_encoder"),
            "./t5xxl_fp16.safetensors": lambda path: self.flux_part(path, "text_encoder_2"),
            "./ae.safetensors": lambda path: write(vae_weights(flux(is_tiny=True).vae), path),
            "black-forest-labs/FLUX.2-klein-4B": tiny_klein,
            "Qwen/Qwen-Image-Edit": tiny_qwen_edit,
            "Tongyi-MAI/Z-Image-Turbo": tiny_z_image,
        }

    def sd_file(self, channels: int) -> Make:
        def make(path: Path) -> Path:
            for kind in ("v1", "inpainting"):
                self._patch.setitem(LAYOUTS, kind, layout_of(tiny(4), kind))
            return write_checkpoint(tiny(channels), path)

        return make

    def sdxl(self) -> Path:
        folder = self.folder / "sdxl"
        return folder if folder.exists() else tiny_sdxl(folder, second_width=64)

    def sdxl_file(self, path: Path) -> Path:
        return write_checkpoint(DiffusionPipeline.from_pretrained(self.sdxl()), path)

    def lora_folder(self, path: Path) -> Path:
        path.mkdir()
        tiny_lora(self.sdxl(), path / "ink_xl.safetensors", seed=1)
        return path

    def controlnet(self, path: Path) -> Path:
        return tiny_controlnet(self.make("stable-diffusion-v1-5/stable-diffusion-v1-5"), path, seed=1)

    def flux_gguf(self, path: Path) -> Path:
        pipeline = flux(is_tiny=True)
        self._patch.setattr(single_file_utils, "infer_diffusers_model_type", lambda _weights: "flux-dev")
        self._patch.setitem(LAYOUTS, "flux-dev", layout_of(pipeline, "flux-dev"))
        return write_gguf(pipeline.transformer.state_dict(), path, Type.Q4_0, "flux")

    def flux_part(self, path: Path, name: str) -> Path:
        return write(text_encoder_file_weights(getattr(flux(is_tiny=True), name)), path)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sources = TinySources(tmp_path, monkeypatch)
    file = tmp_path / "models.toml"
    # On a CPU, `offload` is refused.
    text = re.sub(r"^offload = .*\n|(?<=\S) +#.*", "", RECIPES[name], flags=re.MULTILINE)
    text = re.sub(r'"(\./[^"]+|[\w.-]+/[^"]+)"', lambda match: f'"{sources.make(match[1])}"', text)
    if name == "juggernaut":
        # The tokenizers of the package have more tokens than a tiny SDXL.
        text += f'config = "{sources.sdxl()}"\n'
    file.write_text(text)
    [config] = read_models_file(file).values()
    model = load_model(LoraFolders().expand(config, set()), device="cpu")
    image, pixels = random_tensor(1, SIDE, SIDE), set()
    for task in model.card.tasks:
        if task not in (Task.IMG2IMG, Task.EDIT, Task.CONTROL):
            continue
        spec = make_spec(
            task,
            scheduler=model.card.default_scheduler,
            num_inference_steps=2,
            guidance_scale=model.card.default_guidance_scale,
            strength=0.9,
            width=SIDE,
            height=SIDE,
            loras=tuple(Lora(name=lora, scale=0.8) for lora in model.card.loras),
            controls=[{"type": kind, "image": None, "preprocess": False} for kind in model.card.controls],
        )
        maps = (image,) * len(getattr(spec, "controls", ()))
        [result] = run_on(Engine(slots=1), model, [(spec, Inputs(image, controls=maps))])
        assert result.shape == (SIDE, SIDE, 3)
        assert np.ptp(result) > 0
        pixels.add(result.tobytes())
    assert pixels
    assert set(model.card.loras) == {*config.loras, *({"ink_xl"} if "lora_folder" in text else ())}
    assert set(config.controlnets) <= set(model.card.controls)
    assert (config.inpaint is None) or Task.INPAINT in model.card.tasks
