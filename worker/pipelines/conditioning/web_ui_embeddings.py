"""Embeddings of prompts by the arithmetic of the AUTOMATIC1111 web UI.

A prompt is encoded in chunks of 75 tokens, which end at a comma if there is one near. `BREAK` ends a chunk. A weight
scales the embeddings of its tokens; then the mean of the chunk is restored.
"""

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import DiffusionPipeline

from img2img.domain.spec import DenoisingSpec

from ..uploads import upload

# Pieces of a prompt with their weights.
Fragments = list[tuple[str, float]]
# Tokens with their weights.
Chunk = list[tuple[int, float]]

CHUNK_TOKENS = 75
# How many tokens after the last comma move to the next chunk at most.
COMMA_TOKENS = 20
COMMA = ",</w>"
# Means that are smaller than this share of the values are taken for rounding errors.
_ROUNDING = 1e-4


def embed_as_web_ui(
    pipeline: DiffusionPipeline,
    spec: DenoisingSpec,
    encoders: list[tuple[Any, Any]],
    prompts: list[list[Fragments]],
) -> dict[str, Any]:
    """Return the embeddings of the prompt and the negative prompt as arguments of a pipeline.

    The shorter one is padded with chunks of the empty prompt, as with the web UI's option to pad them to one length.

    Args:
        encoders: tokenizers and their text encoders.
        prompts: the parts of each between `BREAK`.
    """
    is_xl = hasattr(pipeline, "text_encoder_2")
    device = pipeline._execution_device
    by_encoder, pooled = [], []
    for tokenizer, encoder in encoders:
        chunks = [chunks_of(tokenizer, parts) for parts in prompts]
        count = max(map(len, chunks))
        both = []
        for own in chunks:
            outputs = [_encode(tokenizer, encoder, chunk, is_xl, spec.clip_skip, device) for chunk in own]
            if is_xl:
                # Of the last text encoder, the vector for the whole prompt is that of its first chunk.
                pooled.append(outputs[0][1])
            if len(own) < count:
                empty = _encode(tokenizer, encoder, [], is_xl, spec.clip_skip, device)
                outputs += [empty] * (count - len(own))
            both.append(torch.cat([embedding for embedding, _ in outputs], dim=1))
        by_encoder.append(both)
    embeds, negative_embeds = (torch.cat(parts, dim=-1) for parts in zip(*by_encoder, strict=True))
    arguments = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    if not is_xl:
        return arguments
    arguments |= {"pooled_prompt_embeds": pooled[-2], "negative_pooled_prompt_embeds": pooled[-1]}
    is_empty = not any(text.strip() for parts in prompts[1:] for part in parts for text, _ in part)
    if is_empty and pipeline.config.force_zeros_for_empty_prompt:
        for name in ("negative_prompt_embeds", "negative_pooled_prompt_embeds"):
            arguments[name] = torch.zeros_like(arguments[name])
    return arguments


def chunks_of(tokenizer: Any, parts: Iterable[Fragments]) -> list[Chunk]:
    """Return the tokens of a prompt in chunks of at most 75, without those of begin, end and padding.

    Args:
        parts: the parts of the prompt between `BREAK`.
    """
    comma = tokenizer.convert_tokens_to_ids(COMMA)
    chunks: list[Chunk] = []
    chunk: Chunk = []
    for number, fragments in enumerate(parts):
        if number:
            chunks.append(chunk)
            chunk = []
        after_comma = 0
        for text, weight in fragments:
            for token in tokenizer(text, add_special_tokens=False).input_ids if text.strip() else ():
                is_full = len(chunk) == CHUNK_TOKENS
                if is_full:
                    moved = len(chunk) - after_comma if after_comma and token != comma else 0
                    # Counted from the comma.
                    if moved + 1 > COMMA_TOKENS:
                        moved = 0
                    end = len(chunk) - moved
                    chunks.append(chunk[:end])
                    chunk, after_comma = chunk[end:], 0
                chunk.append((token, weight))
                # The web UI forgets a comma that begins a chunk so.
                if token == comma and not is_full:
                    after_comma = len(chunk)
    return [*chunks, chunk] if chunk or not chunks else chunks


def _encode(
    tokenizer: Any, encoder: Any, chunk: Chunk, is_xl: bool, clip_skip: int, device: torch.device
) -> tuple[torch.Tensor, Any]:
    """Return the embeddings of a chunk, (1, 77, width), and the first output of the text encoder."""
    padding = CHUNK_TOKENS - len(chunk)
    tokens = [token for token, _ in chunk]
    # Padding comes after the token of the end.
    ids = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding]
    weights = torch.tensor([1.0, *(weight for _, weight in chunk), *[1.0] * (padding + 1)])
    on_device = upload(torch.tensor([ids]), device)
    if is_xl or clip_skip:
        output = encoder(on_device, output_hidden_states=True)
        embedding = output.hidden_states[-(clip_skip + (2 if is_xl else 1))]
        if not is_xl:
            embedding = encoder.text_model.final_layer_norm(embedding)
    else:
        output = encoder(on_device, attention_mask=None)
        embedding = output[0]
    if any(weight != 1 for _, weight in chunk):
        embedding = _weighted(embedding, upload(weights, device, embedding.dtype))
    return embedding, output[0]


def _weighted(embedding: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return an embedding, (1, tokens, width), times the weights of its tokens, with its mean restored."""
    scaled = embedding * weights[None, :, None]
    mean = scaled.mean()
    # A mean of 0 but for rounding, such as that of a layer norm without bias, says nothing, and dividing by it can give
    # infinity. Without `if`, which would wait for the device.
    is_known = mean.abs() > _ROUNDING * scaled.abs().mean()
    return scaled * torch.where(is_known, embedding.mean() / mean, torch.ones_like(mean))
