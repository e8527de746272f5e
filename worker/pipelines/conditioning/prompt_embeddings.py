"""Embeddings of prompts that are longer than CLIP's 77 tokens or have weights: `a (red:1.3) house`.

Uses compel: a long prompt is encoded in chunks that are split between sentences, phrases or words, and a weight scales
the difference between an embedding and that of the empty prompt. Text encoders are called through their gates.
"""

import re
from typing import Any

import torch
from compel.embeddings_provider import EmbeddingsProvider, ReturnedEmbeddingsType
from diffusers import DiffusionPipeline

from img2img.domain.spec import DenoisingSpec

_WEIGHTED = re.compile(r"\(([^()]+):([0-9]+(?:\.[0-9]+)?)\)")

# Pieces of a prompt with their weights.
Fragments = list[tuple[str, float]]


def parse_weights(text: str) -> Fragments:
    """Split a prompt at `(text:weight)`. Weights cannot be nested; the rest of the prompt has weight 1."""
    fragments, end = [], 0
    for match in _WEIGHTED.finditer(text):
        fragments += [(text[end : match.start()], 1.0), (match[1], float(match[2]))]
        end = match.end()
    fragments.append((text[end:], 1.0))
    return [(piece, weight) for piece, weight in fragments if piece.strip()] or [("", 1.0)]


def embed_prompts(pipeline: DiffusionPipeline, spec: DenoisingSpec, arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace the prompts in the arguments of a pipeline by embeddings, if they are long or weighted."""
    prompts = [spec.prompt, spec.negative_prompt]
    encoders = _encoders(pipeline)
    is_long = any(
        len(tokenizer(prompt).input_ids) > tokenizer.model_max_length for tokenizer, _ in encoders for prompt in prompts
    )
    if not spec.prompt_weighting and not is_long:
        return arguments
    fragments = [parse_weights(prompt) if spec.prompt_weighting else [(prompt, 1.0)] for prompt in prompts]
    plain, negative_plain = ("".join(piece for piece, _ in pieces) for pieces in fragments)
    is_xl = hasattr(pipeline, "text_encoder_2")
    embeds, negative_embeds = _encode(encoders, fragments, is_xl)
    others = {name: value for name, value in arguments.items() if name not in ("prompt", "negative_prompt")}
    if not is_xl:
        return {**others, "prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    # Pooled embeddings are one vector for the whole prompt: of its first 77 tokens, without weights.
    _, _, pooled, negative_pooled = pipeline.encode_prompt(
        prompt=plain, negative_prompt=negative_plain or None, device=pipeline.device, do_classifier_free_guidance=True
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


def _encoders(pipeline: DiffusionPipeline) -> list[tuple[Any, Any]]:
    """Return pairs of a tokenizer and its text encoder."""
    components = pipeline.components
    pairs = [(components.get(f"tokenizer{n}"), components.get(f"text_encoder{n}")) for n in ("", "_2")]
    return [(tokenizer, encoder) for tokenizer, encoder in pairs if encoder is not None]


def _encode(
    encoders: list[tuple[Any, Any]], prompts: list[Fragments], is_xl: bool
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
        provider = EmbeddingsProvider(tokenizer, encoder, truncate=False, returned_embeddings_type=layer)
        embeddings = [
            provider.get_embeddings_for_weighted_prompt_fragments(
                [[piece for piece, _ in fragments]], [[weight for _, weight in fragments]], device=encoder.device
            )
            for fragments in prompts
        ]
        length = max(embedding.shape[1] for embedding in embeddings)
        by_encoder.append([_pad(embedding, provider, length) for embedding in embeddings])
    embeds, negative_embeds = (torch.cat(parts, dim=-1) for parts in zip(*by_encoder, strict=True))
    return embeds, negative_embeds


def _pad(embedding: torch.Tensor, provider: EmbeddingsProvider, length: int) -> torch.Tensor:
    chunks = (length - embedding.shape[1]) // provider.max_token_count
    return torch.cat([embedding, *[provider.empty_z.to(embedding)] * chunks], dim=1) if chunks else embedding
