"""The Markdown pages of the project, and the code blocks in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "docker").rglob("*.md")])
FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    """Return the text of a page by its path in the project."""
    return (ROOT / name).read_text("utf-8")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(language: str, caption: str | None = None) -> list[str]:
    """Return the distinct code blocks in a language, of all pages; those that have this caption, if it is given.

    Tests run the blocks without a caption. A caption is the reason why a block is not run: `title="needs Docker"`.
    """
    wanted = (language, caption)
    found = [block for path in PAGES for kind, title, block in fences(path) if (kind, title) == wanted]
    return list(dict.fromkeys(found))


def fences(path: Path) -> list[tuple[str, str | None, str]]:
    """Return the language, the caption and the text of each code block of a page."""
    found = FENCE.findall(path.read_text("utf-8"))
    return [(language, title or None, block) for language, title, block in found]


def without_code(text: str) -> str:
    """Return the text without code blocks and inline code."""
    return CODE.sub("", text)


def table(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table after a line that starts with `heading`, without its two header rows."""
    lines = text[re.search(rf"^{re.escape(heading)}", text, re.MULTILINE).start() :].splitlines()  # type: ignore[union-attr]
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def names(cell: str) -> list[str]:
    """Return the inline code of a table cell."""
    return re.findall(r"`([^`]+)`", cell)
