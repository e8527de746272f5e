"""Text for a terminal or a log, without characters that control either."""

import re
from unicodedata import category

# Other (control, format, surrogate, private use), and separators of lines and paragraphs.
UNPRINTABLE = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
# Joiners are part of words and emoji in many languages.
JOINERS = "\u200c\u200d"
_PATH = re.compile(r"(?<![\w.:/])(?:~|\.{1,2})?/(?:[^\s/:;,'\"]+/)*([^\s/:;,'\"]*)")


def printable(text: str) -> str:
    """Return the text with escapes such as `\\x1b` in place of characters that control a terminal or end a line.

    These are control characters, which begin escape sequences; format characters, which reverse the order of text or
    are invisible; and separators of lines and paragraphs.
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    if category(character) not in UNPRINTABLE or character in JOINERS:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def without_paths(text: str) -> str:
    """Return the text with the last part of each absolute path only, for text that leaves the service."""
    return _PATH.sub(r"\1", text)
