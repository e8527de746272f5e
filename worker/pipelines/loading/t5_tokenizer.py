"""The tokenizer of T5, built from its SentencePiece vocabulary, which is part of the package."""

import gzip
import json
from base64 import b64decode
from functools import cache
from pathlib import Path

from transformers import T5Tokenizer

# Written by scripts/t5_vocabulary.py.
VOCABULARY = Path(__file__).with_name("t5_vocabulary") / "vocabulary.json.gz"
MAX_TOKENS = 512
EXTRA_IDS = 100


def t5_tokenizer() -> T5Tokenizer:
    """Return the tokenizer of the T5 text encoders of Stable Diffusion 3 and FLUX."""
    pieces, characters = _vocabulary()
    extra = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(EXTRA_IDS))]
    return T5Tokenizer(
        vocab=[*pieces, *extra],
        _spm_precompiled_charsmap=characters,
        extra_ids=EXTRA_IDS,
        model_max_length=MAX_TOKENS,
    )


@cache
def _vocabulary() -> tuple[list[tuple[str, float]], bytes]:
    """Return (piece, logarithm of its probability) by id, and SentencePiece's table of characters to normalise."""
    content = json.loads(gzip.decompress(VOCABULARY.read_bytes()))
    return [(piece, score) for piece, score in content["pieces"]], b64decode(content["characters"])
