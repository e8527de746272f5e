"""LoRAs of LyCORIS and DoRAs give the pixels of stock pipelines whose weights have the same changes."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from img2img.domain.conditioning import ImagePrompt, Lora
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import run_on, run_together
from tests.support.images import gradient
from tests.support.models.tiny_adapters import tiny_ip_adapter, tiny_lora
from tests.support.models.tiny_lycoris import KINDS, tiny_lycoris
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec
from tests.support.stock import call_stock


class Served:
    """A tiny model with a LoRA of each kind, and the stock pipeline."""

    def __init__(self, make: object, folder: Path) -> None:
        self.folder = make(folder / "model")  # type: ignore[operator]
        self.changes = {
            kind: tiny_lycoris(self.folder, folder / f"{kind}.safetensors", kind, seed=seed)
            for seed, kind in enumerate(KINDS)
        }
        self.lora = tiny_lora(self.folder, folder / "plain.safetensors", seed=1)
        self.ip_adapter = tiny_ip_adapter(self.folder, folder / "ip")
        files = {"plain": self.lora} | {kind: folder / f"{kind}.safetensors" for kind in KINDS}
        config = ModelConfig(
            name="tiny",
            source=str(self.folder),
            loras={name: ComponentSource(source=str(file)) for name, file in files.items()},
            ip_adapter=ComponentSource(source=str(self.ip_adapter)),
        )
        self.model: Model = load_model(config, device="cpu")
        self.image = gradient(64, 64)
        self.style = gradient(40, 60, blue=200)

    def inputs(self, spec: JobSpec) -> Inputs:
        return Inputs(to_tensor(self.image), image_prompts=tuple(self.style for _ in spec.image_prompts))

    def run(self, *specs: JobSpec) -> list[np.ndarray]:
        return run_together(self.model, [(spec, self.inputs(spec)) for spec in specs])

    def reference(self, spec: JobSpec) -> np.ndarray:
        stock = diffusers.AutoPipelineForImage2Image.from_pretrained(self.folder)
        stock.set_progress_bar_config(disable=True)
        stock.scheduler = diffusers.DDIMScheduler.from_config(stock.scheduler.config)
        plain = [lora.scale for lora in spec.loras if lora.name == "plain"]
        for lora in spec.loras:
            for (component, name), change in self.changes.get(lora.name, {}).items():
                getattr(stock, component).get_parameter(name).data += lora.scale * torch.from_numpy(change)
        if plain:
            stock.load_lora_weights(self.lora, adapter_name="plain")
            stock.set_adapters(["plain"], plain)
        prompt: dict[str, Image.Image] = {}
        if spec.image_prompts:
            stock.load_ip_adapter(str(self.ip_adapter), subfolder="", weight_name="ip-adapter.safetensors")
            stock.set_ip_adapter_scale(spec.image_prompts[0].scale)
            prompt = {"ip_adapter_image": self.style}
        return call_stock(
            stock,
            spec,
            prompt=spec.prompt,
            image=self.image,
            strength=spec.strength,
            **prompt,
        )


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl], ids=["sd", "sdxl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(request.param, tmp_path_factory.mktemp("kinds"))


def job(*loras: tuple[str, float], image_prompt: bool = False, **changes: object) -> JobSpec:
    defaults = {
        "strength": 0.8,
        "num_inference_steps": 4,
        "width": 64,
        "height": 64,
        "loras": tuple(Lora(name=name, scale=scale) for name, scale in loras),
        "image_prompts": (ImagePrompt(image="1" * 64, scale=0.6),) if image_prompt else (),
    }
    return make_spec(**{**defaults, **changes})


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_every_kind_gives_stock_pixels_alone_and_batched(served: Served) -> None:
    scales = (1.0, 0.5, -0.7)
    specs = [job((kind, scales[i % 3]), seed=i) for i, kind in enumerate(KINDS)]
    if not (served.folder / "text_encoder_2").exists():
        specs += [job((kind, scales[(i + 1) % 3])) for i, kind in enumerate(KINDS)]
    specs += [
        job(),
        job(("loha", 0.8), ("plain", 0.6)),
        job(("plain", 0.5), ("lokr", 0.4), ("locon-tucker", 0.3)),
        job(("lokr", 0.7), image_prompt=True),
    ]
    together = served.run(*specs)
    plain = served.reference(job())
    for spec, batched in zip(specs, together, strict=True):
        reference = served.reference(spec)
        assert difference(served.run(spec)[0], reference) <= 1, spec.loras
        assert difference(batched, reference) <= 1, spec.loras
        if spec.loras:
            assert difference(reference, plain) > 1, "the LoRA must change the image"


def test_jobs_with_equal_loras_share_passes(served: Served) -> None:
    engine = Engine(slots=4)
    specs = [job(("loha", 0.7), ("dora-of-outputs", 0.2), seed=seed, strength=1.0) for seed in range(3)]
    run_on(engine, served.model, [(spec, served.inputs(spec)) for spec in specs])
    assert (engine.calls_run["denoise"], engine.rows_run["denoise"]) == (4, 24)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("metadata", [False, True], ids=["plain", "with metadata"])
def test_files_of_diffusers_give_stock_pixels(tmp_path: Path, dora: bool, metadata: bool) -> None:
    """The metadata of diffusers' files has their alpha, and they can be DoRAs."""
    folder = tiny_sd(tmp_path / "model")
    stock = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    torch.manual_seed(1)
    stock.unet.add_adapter(
        LoraConfig(r=4, lora_alpha=9, use_dora=dora, target_modules=["to_q", "to_k"], init_lora_weights=False)
    )
    for name, parameter in stock.unet.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.3
    stock.save_lora_weights(
        tmp_path,
        weight_name="ink.safetensors",
        unet_lora_layers=get_peft_model_state_dict(stock.unet, adapter_name="default"),
        **(_collate_lora_metadata({"unet": stock.unet}) if metadata else {}),
    )
    image = gradient(64, 64)
    model = _load(folder, tmp_path / "ink.safetensors")
    specs = [job(("ink", scale)) for scale in (1.0, 0.4, -0.5)]
    results = run_together(model, [(spec, Inputs(to_tensor(image))) for spec in specs])
    stock = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = diffusers.DDIMScheduler.from_config(stock.scheduler.config)
    stock.load_lora_weights(tmp_path / "ink.safetensors", adapter_name="ink")
    for spec, result in zip(specs, results, strict=True):
        stock.set_adapters(["ink"], [spec.loras[0].scale])
        reference = stock(
            prompt=spec.prompt,
            image=image,
            strength=spec.strength,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator().manual_seed(spec.seed),
        ).images[0]
        assert difference(result, np.asarray(reference)) <= 1, spec.loras
    assert difference(results[0], results[1]) > 1


def test_changes_of_quantised_weights(tmp_path: Path) -> None:
    pytest.importorskip("torchao.quantization")
    folder = tiny_sd(tmp_path / "model")
    image = Inputs(to_tensor(gradient(64, 64)))
    tiny_lycoris(folder, tmp_path / "loha.safetensors", "loha")
    tiny_lycoris(folder, tmp_path / "dora.safetensors", "dora-of-outputs")
    model, plain = (
        _load(folder, tmp_path / "loha.safetensors", **keys) for keys in ({"quantize": {"unet": "int8"}}, {})
    )
    quantised, without = run_together(model, [(job(("ink", 0.8)), image), (job(), image)])
    [exact] = run_together(plain, [(job(("ink", 0.8)), image)])
    # The change itself is not quantised.
    assert difference(quantised, exact) < difference(quantised, without)
    with pytest.raises(StartupError, match="a DoRA needs weights that are not quantised; remove `quantize`"):
        _load(folder, tmp_path / "dora.safetensors", quantize={"unet": "int8"})


@pytest.mark.parametrize("layout", ["peft", "two projections of the text encoder"])
def test_plain_loras_that_diffusers_refuses_give_the_pixels_of_those_that_it_loads(tmp_path: Path, layout: str) -> None:
    folder = tiny_sd(tmp_path / "model")
    is_peft = layout == "peft"
    weights = load_file(tiny_lora(folder, tmp_path / "loaded.safetensors", seed=1, text=not is_peft, kohya=not is_peft))
    if is_peft:
        renamed = {key.replace("unet.", "base_model.model.", 1): tensor for key, tensor in weights.items()}
    else:
        dropped = ("_k_proj.", "_out_proj.")
        renamed = {key: tensor for key, tensor in weights.items() if not any(part in key for part in dropped)}
        weights = {
            key: tensor if key in renamed else torch.zeros_like(tensor) if "lora_up" in key else tensor
            for key, tensor in weights.items()
        }
    save_file(weights, tmp_path / "loaded.safetensors")
    save_file(renamed, tmp_path / "refused.safetensors")
    results = [
        run_together(_load(folder, tmp_path / f"{name}.safetensors"), [(spec, Inputs(to_tensor(gradient(64, 64))))])[0]
        for name in ("loaded", "refused")
        for spec in [job(("ink", 0.8)), job()]
    ]
    assert difference(results[0], results[2]) <= 1
    assert difference(results[0], results[1]) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_unet_nowhere_1_to_q.hada_w1_a": torch.zeros(2, 2)}, "1 of its .* layers are not in the model"),
        ({"lora_unet_conv_in.diff": torch.zeros(3, 3)}, r"are not those of the layer: diff \[3, 3\]"),
        ({"lora_unet_conv_in.hada_w1_a": torch.zeros(3, 3)}, "are not those of the layer: hada_w1_a"),
        ({"lora_unet_mid_block_attentions_0_proj_in.diff": torch.zeros(3, 3)}, "none or several changes: diff, hada"),
        ({"lora_unet_conv_in.alpha": torch.ones(1)}, "none or several changes"),
        ({"lora_unet_conv_norm_out.w_norm": torch.zeros(32)}, "changes norms, which is not supported"),
        ({"lora_unet_conv_in.on_input": torch.zeros(1)}, "an IA3 .LyCORIS., which is not supported"),
        ({"lora_unet_conv_in.a1.weight": torch.zeros(1)}, "a GLoRA .LyCORIS., which is not supported"),
        ({"bundle_emb.clay.string_to_param.*": torch.zeros(1)}, "bundled textual inversions, which is not supported"),
        (
            {"lora_unet_conv_in.other": torch.zeros(1)},
            "tensors that are not supported, such as lora_unet_conv_in.other",
        ),
    ],
)
def test_load_model_rejects_changes_that_it_cannot_apply(
    tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    folder = tiny_sd(tmp_path / "model")
    tiny_lycoris(folder, tmp_path / "loha.safetensors", "loha")
    save_file({**load_file(tmp_path / "loha.safetensors"), **change}, tmp_path / "bad.safetensors")
    with pytest.raises(StartupError, match=message) as raised:
        _load(folder, tmp_path / "bad.safetensors")
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("metadata", "base"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "Stable Diffusion XL"),
        ({"ss_base_model_version": "sd_v1"}, None),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "Stable Diffusion XL"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, None),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "FLUX.1"),
        ({"modelspec.architecture": "unheard-of"}, None),
    ],
)
def test_load_model_rejects_lora_for_another_base_by_metadata(
    tmp_path: Path, metadata: dict[str, str], base: str | None
) -> None:
    folder = _sd1(tmp_path / "model")
    file = tiny_lora(folder, tmp_path / "ink.safetensors", seed=1, text=False, kohya=True)
    # Without the shapes that name the base.
    weights = {key: tensor for key, tensor in load_file(file).items() if "attn2" not in key}
    save_file(weights, file, metadata)
    if base is None:
        assert _load(folder, file).card.loras == ("ink",)
        return
    with pytest.raises(StartupError, match=f"ink.safetensors is for {base}; the model is Stable Diffusion 1"):
        _load(folder, file)


@pytest.mark.parametrize("kohya", [False, True])
def test_load_model_rejects_lora_for_another_base_by_shapes(tmp_path: Path, kohya: bool) -> None:
    folder = _sd1(tmp_path / "model")
    file = tiny_lora(folder, tmp_path / "ink.safetensors", seed=1, text=False, kohya=kohya)
    # Shapes count more than metadata.
    save_file(load_file(file), file, {"ss_base_model_version": "sdxl_base_v1-0"})
    assert _load(folder, file).card.loras == ("ink",)
    for width, base in ((2048, "Stable Diffusion XL"), (1024, "Stable Diffusion 2")):
        wider = {
            key: torch.zeros(tensor.shape[0], width) if "attn2" in key and tensor.shape[-1:] == (768,) else tensor
            for key, tensor in load_file(file).items()
        }
        save_file(wider, tmp_path / "wide.safetensors")
        with pytest.raises(StartupError, match=f"is for {base}; the model is Stable Diffusion 1"):
            _load(folder, tmp_path / "wide.safetensors")


def _load(folder: Path, lora: Path, **keys: Any) -> Model:
    loras = {"ink": ComponentSource(source=str(lora))}
    return load_model(ModelConfig(name="m", source=str(folder), loras=loras, **keys), device="cpu")


def _sd1(folder: Path) -> Path:
    """Save a tiny model whose text embeddings are as wide as those of Stable Diffusion 1."""
    tiny_sd(folder)
    unet = diffusers.UNet2DConditionModel.from_config(
        diffusers.UNet2DConditionModel.load_config(folder, subfolder="unet"), cross_attention_dim=768
    )
    unet.save_pretrained(folder / "unet")
    return folder
