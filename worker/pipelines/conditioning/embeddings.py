"""Embeddings (textual inversions) of a model: vectors that prompts name, as tokens of its text encoders."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from img2img.domain.embeddings import replace_embeddings
from img2img.domain.model_config import ComponentSource, ModelConfig

from ...errors import StartupError
from ..families import Family
from ..loading.failures import reporting_failures
from ..loading.weight_kinds import examples, kind_of_weights
from ..loading.weights import resolve_weights
from .prompt_embeddings import text_encoders

FILE_NAME = "learned_embeds.safetensors"
# Keys of the vectors for the first and the second text encoder of Stable Diffusion XL.
TWO_ENCODERS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
KIND = "a textual inversion"

# Vectors, (vectors, width), for each text encoder.
Vectors = list[torch.Tensor]


class Embeddings:
    """The embeddings of a model, by name."""

    def __init__(self, config: ModelConfig, family: Family) -> None:
        """Read the files that `config` lists.

        Raises:
            StartupError: if the family has no embeddings, or a file is not an embedding.
        """
        if config.embeddings and not family.clip_prompts:
            raise StartupError(f"embeddings are not supported for {family.name} models; remove `embeddings`")
        self._vectors = {name: _read(source, _label(name)) for name, source in config.embeddings.items()}
        if len({name.lower() for name in self._vectors}) < len(self._vectors):
            raise StartupError("two names in `embeddings` differ in upper and lower case only; rename one")
        self._tokens = {
            name: [f"<|embedding-{index}-{number}|>" for number in range(len(vectors[0]))]
            for index, (name, vectors) in enumerate(self._vectors.items())
        }

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._vectors)

    def add_to(self, pipeline: DiffusionPipeline) -> None:
        """Add the vectors to the text encoders of a pipeline, and their tokens to its tokenizers, if it lacks them.

        Raises:
            StartupError: if an embedding does not fit.
        """
        pairs = text_encoders(pipeline)
        for name, vectors in self._vectors.items():
            _check_widths(name, vectors, [encoder.get_input_embeddings().embedding_dim for _, encoder in pairs])
        for number, (tokenizer, encoder) in enumerate(pairs):
            tokens = [token for name in self._vectors for token in self._tokens[name]]
            if not tokens or tokens[0] in tokenizer.added_tokens_encoder:
                continue
            rows = [row for vectors in self._vectors.values() for row in vectors[number].to(encoder.dtype)]
            pipeline.load_textual_inversion(rows, tokens, tokenizer=tokenizer, text_encoder=encoder)
            _pool_at_end_of_text(tokenizer, encoder)

    def expand(self, prompt: str) -> str:
        """Return a prompt with the tokens of the embeddings in place of their names."""
        if not self._tokens:
            return prompt
        return replace_embeddings(prompt, {name: " ".join(tokens) for name, tokens in self._tokens.items()})


def _label(name: str) -> str:
    return f"embedding {name!r}"


def _read(source: ComponentSource, label: str) -> Vectors:
    file = resolve_weights(source, label, default=FILE_NAME)
    with reporting_failures(label):
        weights = load_file(file)
    vectors = _vectors(weights)
    if not vectors:
        kind = kind_of_weights(weights)
        is_other = kind if kind and kind != KIND else f"a file with keys such as {examples(weights)}"
        raise StartupError(f"{label}: {file.name} is not {KIND} for Stable Diffusion, but {is_other}")
    if len({len(each) for each in vectors}) != 1:
        raise StartupError(f"{label}: {file.name} has other numbers of vectors for its two text encoders")
    return vectors


def _vectors(weights: Mapping[str, torch.Tensor]) -> Vectors:
    """Return the vectors of a file; none if it is not an embedding."""
    # The web UI saves one tensor as `emb_params`, diffusers under the token.
    keys = next((keys for keys in TWO_ENCODERS if set(keys) == set(weights)), tuple(weights))
    tensors = [weights[key] for key in keys]
    if len(tensors) not in (1, 2) or any(tensor.dim() not in (1, 2) for tensor in tensors):
        return []
    if len(tensors) == 2 and keys not in TWO_ENCODERS:
        return []
    return [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]


def _check_widths(name: str, vectors: Vectors, widths: list[int]) -> None:
    given = [each.shape[1] for each in vectors]
    if given != widths:
        raise StartupError(
            f"{_label(name)} is for {_base(given)} with text encoders of width {_and(given)}; those of the model have "
            f"{_and(widths)}"
        )


def _base(widths: list[int]) -> str:
    names = {(768,): "Stable Diffusion 1", (1024,): "Stable Diffusion 2", (768, 1280): "Stable Diffusion XL"}
    return names.get(tuple(widths), "a model")


def _and(widths: list[int]) -> str:
    return " and ".join(map(str, widths))


def _pool_at_end_of_text(tokenizer: Any, encoder: Any) -> None:
    """Let a text encoder pool at the end of the text, where it was trained to.

    The configurations of published models have the wrong id 2 for that token. transformers then takes the highest id,
    which is that of an embedding if there is one.
    """
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = tokenizer.eos_token_id
