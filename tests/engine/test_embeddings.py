"""Embeddings in prompts give the pixels of stock pipelines with diffusers' `load_textual_inversion`."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from compel import Compel, DiffusersTextualInversionManager, ReturnedEmbeddingsType
from safetensors.torch import load_file, save_file

from img2img.domain.conditioning import Lora
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.conditioning.prompt_embeddings import add_text_model
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import run_together
from tests.support.images import gradient
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_families import tiny_flux
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec
from tests.support.stock import call_stock

# Name in models.toml -> (token in the stock pipeline, number of vectors, layout of the file).
EMBEDDINGS = {
    "EasyNegative": ("tone", 1, "webui"),
    "my-style": ("ttwo", 3, "diffusers"),
    "v1.3": ("tthree", 2, "webui"),
}
LONG = "a red house by the lake, " * 4
WIDTHS = {tiny_sd: (32,), tiny_sdxl: (32, 48)}


def xl(folder: Path) -> Path:
    return tiny_sdxl(folder, second_width=48)


MAKE = {tiny_sd: tiny_sd, tiny_sdxl: xl}


class Served:
    """A tiny model with embeddings, and the stock pipeline with the same."""

    def __init__(self, kind: Any, folder: Path) -> None:
        self.folder = MAKE[kind](folder / "model")
        self.is_xl = kind is tiny_sdxl
        self.files = {}
        for seed, (name, (token, count, layout)) in enumerate(EMBEDDINGS.items()):
            self.files[name] = folder / f"{seed}.safetensors"
            save_embedding(self.files[name], WIDTHS[kind], count, layout, token, seed=seed)
        self.lora = tiny_lora(self.folder, folder / "ink.safetensors", seed=1)
        self.model = self.load(self.files)
        self.image = gradient(32, 32)

    def load(self, embeddings: dict[str, Path]) -> Model:
        config = ModelConfig(
            name="tiny",
            source=str(self.folder),
            embeddings={name: ComponentSource(source=str(file)) for name, file in embeddings.items()},
            loras={"ink": ComponentSource(source=str(self.lora))},
        )
        return load_model(config, device="cpu")

    def run(self, *specs: JobSpec, model: Model | None = None) -> list[np.ndarray]:
        return run_together(model or self.model, [(spec, Inputs(to_tensor(self.image))) for spec in specs])

    def stock(self, spec: JobSpec) -> Any:
        stock = diffusers.AutoPipelineForImage2Image.from_pretrained(self.folder)
        stock.set_progress_bar_config(disable=True)
        stock.scheduler = diffusers.DDIMScheduler.from_config(stock.scheduler.config)
        for name, (token, _, _) in EMBEDDINGS.items():
            weights = load_file(self.files[name])
            for n, key in (("", "clip_l"), ("_2", "clip_g")) if self.is_xl else (("", next(iter(weights))),):
                stock.load_textual_inversion(
                    weights[key],
                    token,
                    tokenizer=getattr(stock, f"tokenizer{n}"),
                    text_encoder=getattr(stock, f"text_encoder{n}"),
                )
        for lora in spec.loras:
            stock.load_lora_weights(self.lora, adapter_name="ink")
            stock.set_adapters(["ink"], [lora.scale])
        if spec.clip_skip:
            add_text_model(stock)
        return stock

    def reference(self, spec: JobSpec, prompt: str, negative: str) -> np.ndarray:
        """Return the pixels of the stock pipeline.

        Args:
            prompt: prompt with the tokens of the stock pipeline, in the syntax of compel if it is weighted.
        """
        stock = self.stock(spec)
        texts: dict[str, Any] = {
            "prompt": prompt,
            "negative_prompt": negative or None,
            "clip_skip": spec.clip_skip or None,
        }
        # The tiny tokenizers make one token per letter.
        if spec.prompt_weighting or len(prompt) > stock.tokenizer.model_max_length:
            texts = self.weighted(stock, prompt, negative)
        return call_stock(
            stock,
            spec,
            image=self.image,
            strength=spec.strength,
            **texts,
        )

    @torch.no_grad()
    def weighted(self, stock: Any, prompt: str, negative: str) -> dict[str, torch.Tensor]:
        both = []
        for n in ("", "_2") if self.is_xl else ("",):
            layer = "PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED" if self.is_xl else "LAST_HIDDEN_STATES_NORMALIZED"
            tokenizer = getattr(stock, f"tokenizer{n}")
            manager = DiffusersTextualInversionManager(stock)
            # The manager reads the first tokenizer only; both have the same tokens here.
            embed = Compel(
                tokenizer,
                getattr(stock, f"text_encoder{n}"),
                textual_inversion_manager=manager,
                truncate_long_prompts=False,
                returned_embeddings_type=ReturnedEmbeddingsType[layer],
            )
            pair = [embed.build_conditioning_tensor(text) for text in (prompt, negative)]
            both.append(embed.pad_conditioning_tensors_to_same_length(pair))
        positive, other = (torch.cat(parts, dim=-1) for parts in zip(*both, strict=True))
        embeddings = {"prompt_embeds": positive, "negative_prompt_embeds": other}
        if self.is_xl:
            plain = prompt.replace("(", "").replace(")1.4", "")
            _, _, pooled, negative_pooled = stock.encode_prompt(plain, negative_prompt=negative)
            embeddings |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled}
        return embeddings


def save_embedding(file: Path, widths: tuple[int, ...], count: int, layout: str, token: str, *, seed: int = 0) -> None:
    """Save an embedding as the web UI, diffusers, or trainers for Stable Diffusion XL do."""
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(count, width, generator=generator) for width in widths]
    if len(widths) == 2:
        weights = dict(zip(("clip_l", "clip_g"), vectors, strict=True))
    elif layout == "webui":
        weights = {"emb_params": vectors[0]}
    else:
        weights = {f"<{token}>": vectors[0][0] if count == 1 else vectors[0]}
    save_file(weights, file)


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl], ids=["sd", "sdxl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(request.param, tmp_path_factory.mktemp("embeddings"))


def job(prompt: str, negative: str = "", **changes: object) -> JobSpec:
    fields = {"prompt": prompt, "negative_prompt": negative, "num_inference_steps": 4, "strength": 0.8}
    return make_spec(**{**fields, **changes})


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_embeddings_give_stock_pixels_alone_and_batched(served: Served) -> None:
    lora = {"loras": (Lora(name="ink", scale=0.7),)}
    cases = [
        (job("a house, easynegative"), "a house, tone", ""),
        (job("a <my-style> house", "EasyNegative, blurry"), "a ttwo house", "tone, blurry"),
        (job("embedding:my-style, embedding:v1.3."), "ttwo, tthree.", ""),
        (job("a house", "my-style my-style"), "a house", "ttwo ttwo"),
        (job("my-style", clip_skip=1), "ttwo", ""),
        (job("a house, my-style", "easynegative", **lora), "a house, ttwo", "tone"),
        (job("a (my-style:1.4) house", "v1.3", prompt_weighting=True), "a (ttwo)1.4 house", "tthree"),
        (job(f"{LONG}my-style, easynegative", "blurry"), f"{LONG}ttwo, tone", "blurry"),
        (job("a house"), "a house", ""),
    ]
    together = served.run(*(spec for spec, _, _ in cases))
    for (spec, prompt, negative), batched in zip(cases, together, strict=True):
        reference = served.reference(spec, prompt, negative)
        assert difference(served.run(spec)[0], reference) <= 1, spec.prompt
        assert difference(batched, reference) <= 1, spec.prompt
    assert len({result.tobytes() for result in together}) == len(cases)


def test_names_are_words_of_models_without_them_and_models_do_not_share_embeddings(served: Served) -> None:
    other = {"EasyNegative": served.files["v1.3"]}
    plain, changed = served.load({}), served.load(other)
    spec = job("a house, easynegative")
    ours, words, others = (served.run(spec, model=model)[0] for model in (served.model, plain, changed))
    assert difference(ours, words) > 1
    assert difference(ours, others) > 1
    for model in (plain, changed):
        assert np.array_equal(served.run(job("a house"), model=model)[0], served.run(job("a house"))[0])
    # The first model is as it was.
    assert served.run(spec)[0].tobytes() == ours.tobytes()


def test_card_lists_embeddings(served: Served) -> None:
    assert served.model.card.embeddings == tuple(EMBEDDINGS)


def test_pooling_at_the_end_of_the_text_with_the_token_id_of_published_models(tmp_path: Path) -> None:
    """Published text encoders of SDXL have `eos_token_id` 2, with which transformers pools at the highest id."""
    results = []
    for name, token_id in (("right", None), ("published", 2)):
        folder = xl(tmp_path / name)
        if token_id:
            config = folder / "text_encoder_2" / "config.json"
            encoder = diffusers.StableDiffusionXLPipeline.from_pretrained(folder).text_encoder_2
            encoder.config.eos_token_id = token_id
            encoder.config.save_pretrained(config.parent)
        save_embedding(tmp_path / "style.safetensors", (32, 48), 2, "xl", "style")
        model = load_model(_config(folder, tmp_path / "style.safetensors"), device="cpu")
        results += run_together(model, [(job("a house, style, and more"), Inputs(to_tensor(gradient(32, 32))))])
    assert np.array_equal(*results)


def test_whole_inpainting_pipeline_uses_the_embeddings(tmp_path: Path) -> None:
    folder = tiny_sd(tmp_path / "model")
    tiny_sd(tmp_path / "inpaint", seed=1)
    unet = diffusers.UNet2DConditionModel.from_config(
        diffusers.UNet2DConditionModel.load_config(tmp_path / "inpaint", subfolder="unet"), in_channels=9
    )
    unet.save_pretrained(tmp_path / "inpaint" / "unet")
    save_embedding(tmp_path / "style.safetensors", (32,), 1, "webui", "style")
    config = _config(folder, tmp_path / "style.safetensors", inpaint=ComponentSource(source=str(tmp_path / "inpaint")))
    model = load_model(config, device="cpu")
    for task in (Task.IMG2IMG, Task.INPAINT):
        pipeline = model.pipeline(task, "ddim")  # type: ignore[arg-type]
        expected = load_file(tmp_path / "style.safetensors")["emb_params"][0]
        [token] = pipeline.tokenizer(model.embeddings.expand("style")).input_ids[1:-1]
        assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[token], expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"emb_params": torch.zeros(2, 1024)}, "'style' is for Stable Diffusion 2 .* width 1024; .*have 32"),
        ({"emb_params": torch.zeros(2, 768)}, "'style' is for Stable Diffusion 1 .* width 768; .*have 32"),
        (
            {"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)},
            "'style' is for Stable Diffusion XL .* width 768 and 1280; .*have 32",
        ),
        ({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(1, 1280)}, "other numbers of vectors"),
        (
            {"lora_unet_x.lora_up.weight": torch.zeros(2, 2), "y": torch.zeros(1)},
            "is not a textual inversion .* a LoRA",
        ),
        ({"a": torch.zeros(1, 2), "b": torch.zeros(1, 2), "c": torch.zeros(1)}, "keys such as a, b"),
    ],
)
def test_load_model_rejects_embedding_that_does_not_fit(
    tmp_path: Path, weights: dict[str, torch.Tensor], message: str
) -> None:
    folder = tiny_sd(tmp_path / "model")
    save_file(weights, tmp_path / "style.safetensors")
    with pytest.raises(StartupError, match=message) as raised:
        load_model(_config(folder, tmp_path / "style.safetensors"), device="cpu")
    assert len(str(raised.value)) < 300


def test_load_model_rejects_embeddings_of_models_without_clip(tmp_path: Path) -> None:
    folder = tiny_flux(tmp_path / "model")
    save_embedding(tmp_path / "style.safetensors", (32,), 1, "webui", "style")
    with pytest.raises(StartupError, match="embeddings are not supported for flux models"):
        load_model(_config(folder, tmp_path / "style.safetensors"), device="cpu")


def _config(folder: Path, embedding: Path, **changes: Any) -> ModelConfig:
    embeddings = {"style": ComponentSource(source=str(embedding))}
    return ModelConfig(name="m", source=str(folder), embeddings=embeddings, **changes)
