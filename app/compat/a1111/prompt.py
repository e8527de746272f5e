"""The prompt language of the web UI: LoRA tags, and weights of parts of the text.

https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features. What this service cannot do is refused by name.
"""

import re
from dataclasses import dataclass

from img2img.errors import ParameterError

TAG = re.compile(r"<(\w+):([^<>]*)>")
TOKEN = re.compile(r"\\[\\()\[\]]|:\s*([0-9]*\.?[0-9]+)\s*\)|[()\[\]]|[^\\()\[\]:]+|[\\:]")
# `[from:to:when]` and `[one|other]`.
EDITING = re.compile(r".*:\s*[0-9.]+\s*|.*\|.*", re.DOTALL)
AND = re.compile(r"\bAND\b")
BREAK = re.compile(r"\bBREAK\b")
# Characters that the weighted language of `POST /img2img` reads as part of it.
SPECIAL = re.compile(r"[()\\]")
ROUND, SQUARE = 1.1, 1 / 1.1
MAX_DEPTH = 30


@dataclass(frozen=True)
class WebUIPrompt:
    """A prompt of the web UI."""

    # Pieces of the text with their weights: neighbours differ.
    fragments: tuple[tuple[str, float], ...]
    # Names and scales.
    loras: tuple[tuple[str, float], ...] = ()

    @property
    def is_weighted(self) -> bool:
        """Whether a piece has another weight than 1, or the text is divided by `BREAK`."""
        return any(weight != 1 or BREAK.search(piece) for piece, weight in self.fragments)

    def text(self, *, weighted: bool) -> str:
        """Return the prompt in the language of `POST /img2img`, with `prompt_weighting` or without."""
        if not weighted:
            return "".join(piece for piece, _ in self.fragments)
        return "".join(_weighted(piece, weight) for piece, weight in self.fragments)


def parse_prompt(field: str, prompt: str) -> WebUIPrompt:
    """Convert a prompt of the web UI. Raises ParameterError for syntax that has no equivalent."""
    loras = tuple(_lora(field, tag) for tag in TAG.finditer(prompt))
    text = TAG.sub("", prompt).strip() if loras else prompt
    if AND.search(text):
        message = "The web UI's `AND` is not supported; write it in lower case if it is only a word"
        raise ParameterError(field, message, got=prompt)
    return WebUIPrompt(tuple(_fragments(field, text)), loras)


def _lora(field: str, tag: re.Match[str]) -> tuple[str, float]:
    kind, (name, *weights) = tag[1], tag[2].split(":")
    if kind != "lora":
        raise ParameterError(
            field, f"The web UI's `<{kind}:...>` is not supported; `<lora:NAME:WEIGHT>` is", got=tag[0]
        )
    try:
        scales = {float(weight) for weight in weights} or {1.0}
    except ValueError:
        scales = set()
    if len(scales) != 1:
        raise ParameterError(field, "A LoRA tag should have the form <lora:NAME> or <lora:NAME:WEIGHT>", got=tag[0])
    return name.strip(), scales.pop()


def _fragments(field: str, text: str) -> list[tuple[str, float]]:
    """Return pieces of the text with their weights: neighbours differ."""
    pieces: list[tuple[str, float]] = []
    # Open brackets: their kind, the index of their first piece, and their offset in the text.
    opened: list[tuple[str, int, int]] = []

    def close(bracket: str, factor: float) -> None:
        index = max(index for index, (kind, _, _) in enumerate(opened) if kind == bracket)
        _, start, _ = opened.pop(index)
        pieces[start:] = [(piece, weight * factor) for piece, weight in pieces[start:]]

    for token in TOKEN.finditer(text):
        kinds = [kind for kind, _, _ in opened]
        match token[0]:
            case "(" | "[" as bracket:
                opened.append((bracket, len(pieces), token.end()))
                if len(opened) > MAX_DEPTH:
                    raise ParameterError(field, f"Brackets are nested more than {MAX_DEPTH} deep", got=text)
            case ")" if "(" in kinds:
                close("(", ROUND)
            case "]" if "[" in kinds:
                start = max(start for kind, _, start in opened if kind == "[")
                inner = text[start : token.start()]
                if EDITING.fullmatch(inner):
                    message = "The web UI's prompt editing is not supported; escape square brackets as \\[ and \\]"
                    raise ParameterError(field, message, got=f"[{inner}]")
                close("[", SQUARE)
            case _ if token[1] and "(" in kinds:
                close("(", float(token[1]))
            case other:
                pieces.append((other[1:] if len(other) == 2 and other[0] == "\\" else other, 1.0))
    # As in the web UI, brackets that are not closed reach to the end.
    while opened:
        kind, _, _ = opened[-1]
        close(kind, ROUND if kind == "(" else SQUARE)
    return _merged(pieces)


def _merged(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    merged: list[tuple[str, float]] = []
    for piece, exact in pieces:
        weight = round(exact, 4)
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + piece, weight)
        else:
            merged.append((piece, weight))
    return merged


def _weighted(piece: str, weight: float) -> str:
    """Return a piece with its weight; white space around it stays outside, where words are separated.

    `BREAK` stays outside as well: it divides the prompt, not a piece of it.
    """
    return "".join(
        part if part == "BREAK" else _weighted_part(part, weight) for part in re.split(r"\b(BREAK)\b", piece)
    )


def _weighted_part(part: str, weight: float) -> str:
    escaped = SPECIAL.sub(r"\\\g<0>", part)
    if weight == 1 or not part.strip():
        return escaped
    start, end = len(escaped) - len(escaped.lstrip()), len(escaped.rstrip())
    return f"{escaped[:start]}({escaped[start:end]}:{weight:.4f}".rstrip("0").rstrip(".") + f"){escaped[end:]}"
