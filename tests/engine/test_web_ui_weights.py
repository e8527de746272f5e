"""Weights in prompts have the arithmetic of the AUTOMATIC1111 web UI, written out here and given to stock pipelines."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from img2img.domain.parameters import Task, WeightingMethod
from img2img.worker.pipelines.conditioning.prompt_embeddings import parse_weighted
from img2img.worker.pipelines.conditioning.web_ui_embeddings import chunks_of, embed_as_web_ui
from tests.support.models.tiny_models import VOCAB, tiny_sd, tiny_sdxl
from tests.support.parameter_models import BATCH_TOLERANCE, STOCK, Served, job

LETTERS = "abcdefgh"
BEFORE, AFTER = (" ".join(LETTERS[i % period] for i in range(count)) for period, count in ((8, 70), (5, 12)))
LONG = f"{BEFORE}, ({AFTER}:1.4) z"


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl], ids=["sd", "sdxl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = request.param(tmp_path_factory.mktemp("model"))
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    # As in trained models, the mean of an embedding is not 0.
    torch.nn.init.constant_(encoder.final_layer_norm.bias, 0.1)
    encoder.save_pretrained(folder / "text_encoder")
    return Served(folder, STOCK[request.param])


@torch.no_grad()
def web_ui_embedding(pipeline: Any, chunks: list[list[tuple[str, float]]], suffix: str, clip_skip: int) -> torch.Tensor:
    """The arithmetic of the web UI, written out: one word is one token."""
    encoder = getattr(pipeline, f"text_encoder{suffix}")
    tokenizer = getattr(pipeline, f"tokenizer{suffix}")
    is_xl = hasattr(pipeline, "text_encoder_2")
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    parts = []
    for chunk in chunks:
        ids = [begin, *(VOCAB[word + "</w>"] for word, _ in chunk), end] + [pad] * (75 - len(chunk))
        weights = torch.tensor([1.0, *(weight for _, weight in chunk)] + [1.0] * (76 - len(chunk)))
        states = encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states
        state = states[-(clip_skip + 2)] if is_xl else states[-(clip_skip + 1)]
        if not is_xl:
            state = encoder.text_model.final_layer_norm(state)
        weighted = state * weights.reshape(1, 77, 1)
        parts.append(weighted * (state.mean() / weighted.mean()))
    return torch.cat(parts, dim=1)


def words(text: str, weight: float = 1.0) -> list[tuple[str, float]]:
    return [(word, weight) for word in text.split()]


WEB_UI = {
    "weights": ("a (b c:1.3) d", [words("a") + words("b c", 1.3) + words("d")]),
    "BREAK": ("a (b:0.8) BREAK c", [words("a") + words("b", 0.8), words("c")]),
    "long, cut at a comma": (LONG, [words(f"{BEFORE} ,"), words(AFTER, 1.4) + words("z")]),
}


@pytest.mark.parametrize("name", WEB_UI)
@pytest.mark.parametrize("clip_skip", [0, 1])
def test_weights_as_in_the_web_ui(served: Served, name: str, clip_skip: int) -> None:
    prompt, chunks = WEB_UI[name]
    pipeline = served.stock[Task.IMG2IMG]
    spec = job(
        prompt=prompt,
        prompt_weighting=True,
        weighting_method=WeightingMethod.A1111,
        negative_prompt="g",
        clip_skip=clip_skip,
    )
    negative = [words("g"), *[[] for _ in chunks[1:]]]
    suffixes = ("", "_2") if hasattr(pipeline, "text_encoder_2") else ("",)
    embeds, negative_embeds = (
        torch.cat([web_ui_embedding(pipeline, each, suffix, clip_skip) for suffix in suffixes], dim=-1)
        for each in (chunks, negative)
    )
    arguments = {"prompt": None, "negative_prompt": None}
    arguments |= {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    if len(suffixes) == 2:
        first = " ".join(word for word, _ in chunks[0])
        _, _, pooled, negative_pooled = pipeline.encode_prompt(first, negative_prompt="g", device="cpu")
        arguments |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled}
    expected = served.reference(spec, pipeline, **arguments)
    compel = spec.model_copy(update={"weighting_method": WeightingMethod.COMPEL})
    result, other = served.run(spec, compel)
    torch.testing.assert_close(result, expected, rtol=0, atol=BATCH_TOLERANCE)
    assert not torch.equal(result, other)


def test_chunks_of_the_web_ui(served: Served) -> None:
    """https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#infinite-prompt-length."""
    tokenizer = served.stock[Task.IMG2IMG].tokenizer

    def lengths(prompt: str) -> list[int]:
        return [len(chunk) for chunk in chunks_of(tokenizer, parse_weighted(prompt))]

    assert lengths("") == [0]
    assert lengths("a " * 75) == [75]
    assert lengths("a " * 76) == [75, 1]
    # After the comma at position 56 there are 19 more tokens: they move. One more does not.
    assert lengths("a " * 55 + ", " + "b " * 25) == [56, 25]
    assert lengths("a " * 54 + ", " + "b " * 25) == [75, 5]
    assert lengths("a BREAK b") == [1, 1]
    assert lengths("a BREAK") == [1]
    assert lengths("BREAK a") == [0, 1]


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.7, 1.3])
def test_mean_of_zero_is_not_restored(weight: float, tmp_path: Path) -> None:
    """Random text encoders have it, also with LoRAs: the result was infinite for some."""
    folder = tiny_sd(tmp_path)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    pipeline: Any = SimpleNamespace(_execution_device=torch.device("cpu"))
    prompts = [parse_weighted(prompt) for prompt in (f"(a b:{weight}) c", "a b c")]
    weighted, plain = embed_as_web_ui(pipeline, job(), [(tokenizer, encoder)], prompts).values()
    assert abs(plain.mean()) < 1e-6
    expected = plain * torch.tensor([1, weight, weight] + 74 * [1])[:, None]
    torch.testing.assert_close(weighted, expected)
