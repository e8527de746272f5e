"""Embeddings of prompts that are longer than CLIP's 77 tokens or have weights: `a (red:1.3) house`.

Uses compel: a long prompt is encoded in chunks that are split between sentences, phrases or words, and a weight scales
the difference between an embedding and that of the empty prompt. `BREAK` begins a new chunk. Text encoders are called
through their gates.
"""

import re
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from compel.embeddings_provider import EmbeddingsProvider, ReturnedEmbeddingsType
from diffusers import DiffusionPipeline

from img2img.domain.parameters import WeightingMethod
from img2img.domain.spec import DenoisingSpec

from .web_ui_embeddings import Fragments, embed_as_web_ui

# Brackets after a backslash are characters of the text.
_WEIGHTED = re.compile(r"\\[()\\]|\(((?:[^()\\]|\\[()\\]|\\(?![()\\]))+):([0-9]+(?:\.[0-9]+)?)\)")
_ESCAPED = re.compile(r"\\([()\\])")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


def parse_weights(text: str) -> Fragments:
    """Split a prompt at `(text:weight)`. Weights cannot be nested; the rest of the prompt has weight 1."""
    fragments, end = [], 0
    for match in _WEIGHTED.finditer(text):
        if match[1] is not None:
            fragments += [(text[end : match.start()], 1.0), (match[1], float(match[2]))]
            end = match.end()
    fragments.append((text[end:], 1.0))
    pieces = [(_ESCAPED.sub(r"\1", piece), weight) for piece, weight in fragments if piece.strip()]
    return pieces or [("", 1.0)]


def parse_weighted(text: str) -> list[Fragments]:
    """Split a prompt at `BREAK`, and each part at its weights."""
    return [parse_weights(part) for part in _BREAK.split(text)]


def is_long(pipeline: DiffusionPipeline, prompts: Iterable[str]) -> bool:
    """Return whether one of the prompts has more tokens than a text encoder of the pipeline takes."""
    tokenizers = [tokenizer for tokenizer, _ in text_encoders(pipeline)]
    return any(
        len(tokenizer(prompt).input_ids) > tokenizer.model_max_length for prompt in prompts for tokenizer in tokenizers
    )


def embed_prompts(
    pipeline: DiffusionPipeline, spec: DenoisingSpec, arguments: dict[str, Any], *, has_long_prompt: bool
) -> dict[str, Any]:
    """Replace the prompts in the arguments of a pipeline by embeddings, if they are long or weighted."""
    if spec.clip_skip:
        add_text_model(pipeline)
    prompts = [arguments["prompt"], arguments.get("negative_prompt") or ""]
    is_web_ui = spec.weighting_method is WeightingMethod.A1111
    # The web UI skips layers for the negative prompt as well.
    if not spec.prompt_weighting and not has_long_prompt and not (is_web_ui and spec.clip_skip):
        return arguments
    encoders = text_encoders(pipeline)
    parsed = [parse_weighted(prompt) if spec.prompt_weighting else [[(prompt, 1.0)]] for prompt in prompts]
    others = {name: value for name, value in arguments.items() if name not in ("prompt", "negative_prompt")}
    if is_web_ui:
        return {**others, **embed_as_web_ui(pipeline, spec, encoders, parsed)}
    plain, negative_plain = (" ".join("".join(piece for piece, _ in part) for part in parts) for parts in parsed)
    is_xl = hasattr(pipeline, "text_encoder_2")
    embeds, negative_embeds = _encode(encoders, parsed, is_xl, spec.clip_skip, pipeline._execution_device)
    if not is_xl:
        return {**others, "prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    # Pooled embeddings are one vector for the whole prompt: of its first 77 tokens, without weights.
    _, _, pooled, negative_pooled = pipeline.encode_prompt(
        prompt=plain,
        negative_prompt=negative_plain or None,
        device=pipeline._execution_device,
        do_classifier_free_guidance=True,
    )
    if not negative_plain and pipeline.config.force_zeros_for_empty_prompt:
        negative_embeds = torch.zeros_like(embeds)
    return {
        **others,
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative_embeds,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": negative_pooled,
    }


def add_text_model(pipeline: DiffusionPipeline) -> None:
    """Add `text_model` to the text encoders: diffusers 0.42 reads it for `clip_skip`, transformers 5 has none."""
    for _, encoder in text_encoders(pipeline):
        if not hasattr(encoder, "text_model"):
            # Not as a submodule: a module must not contain itself.
            object.__setattr__(encoder, "text_model", encoder)


def text_encoders(pipeline: DiffusionPipeline) -> list[tuple[Any, Any]]:
    """Return pairs of a tokenizer and its text encoder."""
    components = pipeline.components
    pairs = [(components.get(f"tokenizer{n}"), components.get(f"text_encoder{n}")) for n in ("", "_2")]
    return [(tokenizer, encoder) for tokenizer, encoder in pairs if encoder is not None]


def _encode(
    encoders: list[tuple[Any, Any]], prompts: list[list[Fragments]], is_xl: bool, clip_skip: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode a prompt and a negative prompt; the shorter one is padded with the embedding of the empty prompt.

    Returns:
        Two tensors of shape (1, tokens, width); `width` adds up over the encoders.
    """
    layer = (
        ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
        if is_xl
        else ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED
    )
    by_encoder = []
    for tokenizer, encoder in encoders:
        # The stock pipelines skip no layers for the negative prompt.
        plain = _Encoder(encoder, device)
        providers = [
            EmbeddingsProvider(tokenizer, each, truncate=False, returned_embeddings_type=layer)
            for each in (_SkippingEncoder(encoder, device, clip_skip, is_xl) if clip_skip else plain, plain)
        ]
        embeddings = [
            torch.cat([_embed(provider, fragments, device) for fragments in parts], dim=1)
            for provider, parts in zip(providers, prompts, strict=True)
        ]
        length = max(embedding.shape[1] for embedding in embeddings)
        by_encoder.append([_pad(*pair, length) for pair in zip(embeddings, providers, strict=True)])
    embeds, negative_embeds = (torch.cat(parts, dim=-1) for parts in zip(*by_encoder, strict=True))
    return embeds, negative_embeds


def _embed(provider: EmbeddingsProvider, fragments: Fragments, device: torch.device) -> torch.Tensor:
    embedding: torch.Tensor = provider.get_embeddings_for_weighted_prompt_fragments(
        [[piece for piece, _ in fragments]], [[weight for _, weight in fragments]], device=device
    )
    return embedding


class _Encoder:
    """A text encoder for compel, which reads its device: that of its weights is another one if they are offloaded."""

    def __init__(self, encoder: Any, device: torch.device) -> None:
        self._encoder = encoder
        self.device = device

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the encoder, such as its dtype."""
        return getattr(self._encoder, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the encoder."""
        return self._encoder(*args, **kwargs)


class _SkippingEncoder(_Encoder):
    """A text encoder without its last layers.

    The layer is the one that the stock pipelines choose. Stable Diffusion applies the final layer norm, SDXL does not.
    """

    def __init__(self, encoder: Any, device: torch.device, clip_skip: int, is_xl: bool) -> None:
        super().__init__(encoder, device)
        self._clip_skip = clip_skip
        self._is_xl = is_xl

    def __call__(self, *args: Any, output_hidden_states: bool, return_dict: bool) -> SimpleNamespace:
        """Return the fields of a text encoder's output that compel reads."""
        del output_hidden_states
        states = self._encoder(*args, output_hidden_states=True, return_dict=return_dict).hidden_states
        if self._is_xl:
            # compel takes the second last state, SDXL skips one layer by default.
            return SimpleNamespace(hidden_states=states[: len(states) - self._clip_skip])
        state = states[-(self._clip_skip + 1)]
        return SimpleNamespace(last_hidden_state=self._encoder.text_model.final_layer_norm(state))


def _pad(embedding: torch.Tensor, provider: EmbeddingsProvider, length: int) -> torch.Tensor:
    chunks = (length - embedding.shape[1]) // provider.max_token_count
    return torch.cat([embedding, *[provider.empty_z.to(embedding)] * chunks], dim=1) if chunks else embedding
