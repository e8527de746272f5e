"""Names of embeddings (textual inversions) in prompts: a bare word, `<name>` or `embedding:name`."""

import re
from collections.abc import Iterator, Mapping

# Files of embeddings are named with a suffix in prompts for ComfyUI.
_FILE = re.compile(r"\.(?:safetensors|pt|bin)$")
_EXPLICIT = r"(?<!\w)embedding:(?P<word>[A-Za-z0-9](?:[\w.-]*\w)?)|<(?P<tag>[A-Za-z0-9][\w.-]*)>"


def replace_embeddings(prompt: str, replacements: Mapping[str, str]) -> str:
    """Return the prompt with each name of an embedding replaced. Upper and lower case are the same.

    Args:
        replacements: text by name.
    """
    by_name = {name.lower(): text for name, text in replacements.items()}
    # Longer names first: `style-2` is not `style`.
    names = "|".join(re.escape(name) for name in sorted(by_name, key=len, reverse=True))
    bare = rf"|(?<![\w.-])(?P<bare>{names})(?![\w-]|\.\w)" if names else ""
    return re.sub(_EXPLICIT + bare, lambda match: by_name.get(_name(match), match[0]), prompt, flags=re.IGNORECASE)


def named_embeddings(prompt: str) -> Iterator[tuple[str, str]]:
    """Yield each `<name>` and `embedding:name` in a prompt, with the name in lower case."""
    yield from ((match[0], _name(match)) for match in re.finditer(_EXPLICIT, prompt, re.IGNORECASE))


def _name(match: re.Match[str]) -> str:
    name = next(group for group in match.groups() if group is not None)
    return _FILE.sub("", name).lower()
