"""FLUX.1 Redux: pixels equal those of the stock pipelines, alone and batched with other jobs."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from img2img.domain.conditioning import ImagePrompt, Lora
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Scheduler
from img2img.domain.spec import JobSpec
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.model import load_model
from tests.engine.test_families import flux_arguments, largest_difference
from tests.support.engines import run_together
from tests.support.images import gradient
from tests.support.models.tiny_adapters import tiny_lora
from tests.support.models.tiny_families import tiny_flux
from tests.support.models.tiny_models import tiny_sd
from tests.support.specs import make_spec

SIDE = 64


def tiny_redux(folder: Path, *, width: int = 32) -> Path:
    """Save FLUX.1 Redux in miniature: without text encoders, as it is published."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    diffusers.FluxPriorReduxPipeline(
        image_encoder=SiglipVisionModel(config),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
        image_embedder=ReduxImageEncoder(redux_dim=32, txt_in_features=width),
    ).save_pretrained(folder)
    return folder


class Served:
    """A tiny FLUX.1 model with Redux and a LoRA."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.redux = tiny_flux(folder / "model"), tiny_redux(folder / "redux")
        self.lora = tiny_lora(self.folder, folder / "ink.safetensors", seed=1)
        config = ModelConfig(
            name="tiny",
            source=str(self.folder),
            ip_adapter=ComponentSource(source=str(self.redux)),
            loras={"ink": ComponentSource(source=str(self.lora))},
        )
        self.model = load_model(config, device="cpu")
        self.image = gradient(SIDE, SIDE)
        self.styles = [gradient(40, 60, blue=200), gradient(90, 70).rotate(90)]

    def run(self, *specs: JobSpec) -> list[np.ndarray]:
        image = to_tensor(self.image)
        jobs = [(spec, Inputs(image, image_prompts=tuple(self.styles[: len(spec.image_prompts)]))) for spec in specs]
        return run_together(self.model, jobs)

    def reference(self, spec: JobSpec) -> np.ndarray:
        stock = diffusers.FluxImg2ImgPipeline.from_pretrained(self.folder)
        stock.set_progress_bar_config(disable=True)
        for lora in spec.loras:
            stock.load_lora_weights(self.lora, adapter_name="ink")
            stock.set_adapters(["ink"], [lora.scale])
        texts: dict[str, Any] = {"prompt": spec.prompt}
        if spec.image_prompts:
            parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
            prior = diffusers.FluxPriorReduxPipeline.from_pretrained(
                self.redux, **{part: getattr(stock, part) for part in parts}
            )
            scales = [prompt.scale for prompt in spec.image_prompts]
            # With these text encoders the stock pipeline scales the text as well, by a sum of 1 or not at all here.
            texts = dict(
                prior(
                    self.styles[: len(scales)],
                    prompt=[spec.prompt] * len(scales),
                    prompt_embeds_scale=scales,
                    pooled_prompt_embeds_scale=scales,
                )
            )
        image = stock(
            image=self.image,
            num_inference_steps=spec.num_inference_steps,
            generator=torch.Generator().manual_seed(spec.seed),
            **flux_arguments(spec),
            **texts,
        ).images[0]
        return np.asarray(image)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("redux"))


def job(*scales: float, **changes: Any) -> JobSpec:
    prompts = tuple(ImagePrompt(image=str(n) * 64, scale=scale) for n, scale in enumerate(scales))
    defaults = {"num_inference_steps": 4, "strength": 0.8, "width": SIDE, "height": SIDE}
    return make_spec(**{**defaults, "scheduler": Scheduler.FLOW_EULER, "image_prompts": prompts, **changes})


def test_image_prompts_give_stock_pixels_alone_and_batched(served: Served) -> None:
    # Where the scales add up to 1, the stock pipeline leaves the text as it is.
    lora = (Lora(name="ink", scale=0.7),)
    specs = [job(), job(1.0), job(0.6, 0.4), job(0.25, 0.75, seed=5), job(1.0, loras=lora), job(1.0, prompt="a lake")]
    together = served.run(*specs)
    plain = served.reference(specs[0])
    for spec, batched in zip(specs, together, strict=True):
        reference = served.reference(spec)
        assert largest_difference(served.run(spec)[0], reference) <= 1, spec
        assert largest_difference(batched, reference) <= 1, spec
        if spec.image_prompts:
            assert largest_difference(reference, plain) > 1, "the image prompt must change the image"
    assert len({result.tobytes() for result in together}) == len(specs)


def test_scale_of_an_image_leaves_the_text_as_it_is(served: Served) -> None:
    weak, weaker, plain = served.run(job(0.5), job(0.0), job())
    assert largest_difference(weak, plain) > 1
    assert np.array_equal(weaker, plain)


def test_redux_works_with_a_quantised_transformer(served: Served) -> None:
    pytest.importorskip("torchao")
    config = ModelConfig(
        name="tiny",
        source=str(served.folder),
        ip_adapter=ComponentSource(source=str(served.redux)),
        quantize={"*": "int8"},
    )
    quantised = load_model(config, device="cpu")
    inputs = Inputs(to_tensor(served.image), image_prompts=tuple(served.styles[:1]))
    [result] = run_together(quantised, [(job(1.0), inputs)])
    [expected], [plain] = served.run(job(1.0)), served.run(job())
    assert np.abs(result.astype(int) - expected).mean() < np.abs(result.astype(int) - plain).mean()


def test_card_has_image_prompts(served: Served) -> None:
    assert (served.model.card.image_prompts, served.model.card.max_image_prompts) == (True, 4)


def test_load_model_rejects_redux_that_does_not_fit(tmp_path: Path) -> None:
    folder = tiny_flux(tmp_path / "model")
    cases = {
        "its tokens have the width 16; the model needs 32": tiny_redux(tmp_path / "redux", width=16),
        "is a StableDiffusionPipeline": tiny_sd(tmp_path / "sd"),
    }
    for message, source in cases.items():
        with pytest.raises(StartupError, match=f"FLUX.1 Redux: .*{message}"):
            load_model(
                ModelConfig(name="m", source=str(folder), ip_adapter=ComponentSource(source=str(source))), device="cpu"
            )
