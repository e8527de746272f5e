"""Long and weighted prompts give the pixels of the stock pipeline with embeddings by compel."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from compel import Compel, ReturnedEmbeddingsType

from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.conditioning.prompt_embeddings import parse_weights
from img2img.worker.pipelines.loading.served_models import config_for
from img2img.worker.pipelines.model import load_model
from tests.support.engines import run_on, run_together
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec
from tests.support.stock import call_stock

# The tiny tokenizer makes one token per letter, so this is several times 77 tokens.
LONG = "a red house by the lake, " * 8 + "at sunset."


class Served:
    """A tiny model in the engine, and the stock pipeline with compel."""

    def __init__(self, folder: Path) -> None:
        self.model = load_model(config_for(str(folder)), device="cpu")
        self.stock = diffusers.AutoPipelineForImage2Image.from_pretrained(folder)
        self.stock.set_progress_bar_config(disable=True)
        self.is_xl = hasattr(self.stock, "text_encoder_2")
        self.image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def embeddings(self, prompt: str, negative: str) -> list[torch.Tensor]:
        stock, both = self.stock, []
        for n in ("", "_2") if self.is_xl else ("",):
            layer = "PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED" if self.is_xl else "LAST_HIDDEN_STATES_NORMALIZED"
            embed = Compel(
                getattr(stock, f"tokenizer{n}"),
                getattr(stock, f"text_encoder{n}"),
                truncate_long_prompts=False,
                returned_embeddings_type=ReturnedEmbeddingsType[layer],
            )
            pair = [embed.build_conditioning_tensor(text) for text in (prompt, negative)]
            both.append(embed.pad_conditioning_tensors_to_same_length(pair))
        return [torch.cat(parts, dim=-1) for parts in zip(*both, strict=True)]

    def reference(self, spec: JobSpec, prompt: str, plain: str) -> np.ndarray:
        """Return the pixels of the stock pipeline.

        Args:
            prompt: prompt in the syntax of compel.
            plain: prompt without weights.
        """
        positive, negative = self.embeddings(prompt, spec.negative_prompt)
        embeddings = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
        if self.is_xl:
            _, _, pooled, negative_pooled = self.stock.encode_prompt(plain, negative_prompt=spec.negative_prompt)
            embeddings |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled}
        self.stock.scheduler = diffusers.DDIMScheduler.from_config(self.stock.scheduler.config)
        return call_stock(
            self.stock,
            spec,
            image=diffusers.image_processor.VaeImageProcessor.numpy_to_pil(self.image.permute(0, 2, 3, 1).numpy()),
            strength=spec.strength,
            **embeddings,
        )

    def run(self, specs: list[JobSpec]) -> list[np.ndarray]:
        return run_together(self.model, [(spec, Inputs(self.image)) for spec in specs])


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl], ids=["sd", "sdxl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    served = Served(request.param(tmp_path_factory.mktemp("model")))
    served.image = (served.image * 255).round() / 255
    return served


def job(prompt: str, **changes: object) -> JobSpec:
    defaults = {"prompt": prompt, "negative_prompt": "blurry", "guidance_scale": 7.0, "num_inference_steps": 4}
    return make_spec(**{**defaults, **changes})


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_long_and_weighted_prompts_give_stock_pixels_alone_and_batched(served: Served) -> None:
    cases = [
        (job(LONG), LONG, LONG),
        (job(LONG.replace("sunset", "dawn"), seed=8), LONG.replace("sunset", "dawn"), LONG),
        (job("a (red:1.4) house", prompt_weighting=True), "a (red)1.4 house", "a red house"),
        (job("a (red:0.5) house", prompt_weighting=True), "a (red)0.5 house", "a red house"),
        (job("a red house"), "a red house", "a red house"),
    ]
    together = served.run([spec for spec, _, _ in cases])
    for (spec, prompt, plain), result in zip(cases, together, strict=True):
        reference = served.reference(spec, prompt, plain)
        assert difference(result, reference) <= 1, spec.prompt
        assert difference(served.run([spec])[0], reference) <= 1, spec.prompt
    assert len({result.tobytes() for result in together}) == len(cases)


def test_parentheses_are_text_without_prompt_weighting(served: Served) -> None:
    plain, weighted = served.run([job("a (red:1.4) house"), job("a (red:1.4) house", prompt_weighting=True)])
    assert difference(plain, weighted) > 1


def test_long_prompts_of_equal_length_are_batched(served: Served) -> None:
    engine = Engine(slots=4)
    specs = [job(LONG, seed=seed, strength=0.5 + seed / 10) for seed in range(4)]
    run_on(engine, served.model, [(spec, Inputs(served.image)) for spec in specs])
    assert engine.rows_run["denoise"] / engine.calls_run["denoise"] > 5


def test_parse_weights() -> None:
    assert parse_weights("a (red:1.3) house (old:0.5)") == [("a ", 1.0), ("red", 1.3), (" house ", 1.0), ("old", 0.5)]
    for text in ("16:9 (a:b)", "(:1.2)", "(red:)", "a) (b"):
        assert parse_weights(text) == [(text, 1.0)]
    assert parse_weights("a house (red)") == [("a house (red)", 1.0)]
    assert parse_weights("") == [("", 1.0)]


def test_break_begins_a_new_chunk(served: Served) -> None:
    spec = job("a red house BREAK a (tree:1.4)", prompt_weighting=True)
    reference = served.reference(spec, '("a red house", "a (tree)1.4").and()', "a red house a tree")
    others = [job(r"a \(red\) house", prompt_weighting=True), job("a (red) house")]
    batched, escaped, plain = served.run([spec, *others])
    [alone] = served.run([spec])
    assert difference(alone, reference) <= 1
    assert difference(batched, reference) <= 1
    assert difference(escaped, plain) <= 1
