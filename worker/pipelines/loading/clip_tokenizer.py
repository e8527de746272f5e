"""The tokenizer of CLIP, built from its byte pair merges, which are part of the package."""

import gzip
from functools import cache
from pathlib import Path

from transformers import CLIPTokenizer

# Written by scripts/clip_merges.py.
MERGES = Path(__file__).with_name("clip_vocabulary") / "merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77
_WORD_END = "</w>"


def clip_tokenizer(pad: str = END) -> CLIPTokenizer:
    """Return the tokenizer of all CLIP text encoders.

    Args:
        pad: token that short prompts are padded with; `!` for the OpenCLIP text encoders of Stable Diffusion 2 and XL.
    """
    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=pad,
        model_max_length=MAX_TOKENS,
    )


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return ids by token, and the merges."""
    pairs = [line.split() for line in gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")]
    merges = [(left, right) for left, right in pairs]
    letters = _byte_letters()
    tokens = [*letters, *(letter + _WORD_END for letter in letters), *("".join(pair) for pair in merges), START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def _byte_letters() -> list[str]:
    """Return the character of each token of one byte: printable bytes as they are, the others from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in (*printable, *range(256, 256 + others))]
