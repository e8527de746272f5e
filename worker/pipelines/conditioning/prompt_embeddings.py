"""Prompts that CLIP's 77 tokens do not hold, and prompts with weights: `a (red:1.3) house`.

The maths is compel's: long texts go through the text encoder in pieces, split between sentences, phrases or words; a
weight moves a text's embedding away from that of the empty prompt. The text encoders are called behind their gates.
"""

import re
from typing import Any

import torch
from compel.embeddings_provider import EmbeddingsProvider, ReturnedEmbeddingsType
from diffusers import DiffusionPipeline

from img2img.domain.spec import DenoisingSpec

_WEIGHTED = re.compile(r"\(([^()]+):([0-9]+(?:\.[0-9]+)?)\)")


def parse_weights(text: str) -> list[tuple[str, float]]:
    """The text in pieces, each with its weight: `(text:weight)`, not nested; anything else has weight 1."""
    fragments, end = [], 0
    for match in _WEIGHTED.finditer(text):
        fragments += [(text[end : match.start()], 1.0), (match[1], float(match[2]))]
        end = match.end()
    fragments.append((text[end:], 1.0))
    return [(piece, weight) for piece, weight in fragments if piece.strip()] or [("", 1.0)]


def embed_prompts(pipeline: DiffusionPipeline, spec: DenoisingSpec, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with embeddings in the place of texts, where the texts need it; as they are where they do not."""
    texts = [spec.prompt, spec.negative_prompt]
    encoders = _encoders(pipeline)
    is_long = any(len(tokens(text).input_ids) > tokens.model_max_length for tokens, _ in encoders for text in texts)
    if not spec.prompt_weighting and not is_long:
        return arguments
    split = [parse_weights(text) if spec.prompt_weighting else [(text, 1.0)] for text in texts]
    plain = ["".join(piece for piece, _ in fragments) for fragments in split]
    is_xl = hasattr(pipeline, "text_encoder_2")
    positive, negative = _same_length(encoders, split, is_xl)
    kept = {name: value for name, value in arguments.items() if name not in ("prompt", "negative_prompt")}
    if not is_xl:
        return {**kept, "prompt_embeds": positive, "negative_prompt_embeds": negative}
    # The pooled embeddings are of the first 77 tokens, and without weights: they have one vector for the whole text.
    _, _, pooled, negative_pooled = pipeline.encode_prompt(
        prompt=plain[0], negative_prompt=plain[1] or None, device=pipeline.device, do_classifier_free_guidance=True
    )
    if not plain[1] and pipeline.config.force_zeros_for_empty_prompt:
        negative = torch.zeros_like(positive)
    return {
        **kept,
        "prompt_embeds": positive,
        "negative_prompt_embeds": negative,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": negative_pooled,
    }


def _encoders(pipeline: DiffusionPipeline) -> list[tuple[Any, Any]]:
    """Tokenizers and text encoders."""
    known = pipeline.components
    pairs = [(known.get(f"tokenizer{n}"), known.get(f"text_encoder{n}")) for n in ("", "_2")]
    return [(tokens, encoder) for tokens, encoder in pairs if encoder is not None]


def _same_length(
    encoders: list[tuple[Any, Any]], texts: list[list[tuple[str, float]]], is_xl: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of both texts, (1, tokens, width), the shorter one filled up with those of the empty prompt."""
    layer = (
        ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
        if is_xl
        else ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED
    )
    of_encoders = []
    for tokens, encoder in encoders:
        provider = EmbeddingsProvider(tokens, encoder, truncate=False, returned_embeddings_type=layer)
        embeddings = [
            provider.get_embeddings_for_weighted_prompt_fragments(
                [[piece for piece, _ in fragments]], [[weight for _, weight in fragments]], device=encoder.device
            )
            for fragments in texts
        ]
        longest = max(embedding.shape[1] for embedding in embeddings)
        of_encoders.append([_filled(embedding, provider, longest) for embedding in embeddings])
    positive, negative = (torch.cat(parts, dim=-1) for parts in zip(*of_encoders, strict=True))
    return positive, negative


def _filled(embedding: torch.Tensor, provider: EmbeddingsProvider, length: int) -> torch.Tensor:
    missing = (length - embedding.shape[1]) // provider.max_token_count
    return torch.cat([embedding, *[provider.empty_z.to(embedding)] * missing], dim=1) if missing else embedding
