"""Check the language of docstrings, comments and Markdown against a word list.

    python scripts/check_language.py [--verbose] [FOLDER]

Counts groups of words in two collections: the docstrings and comments of the Python packages, and the prose of the
Markdown pages without code. A group fails when its rate per 1000 words is above its ceiling. The script prints the
lines with matches of failing groups, or of all groups with `--verbose`, and exits with 1 when a group fails. The style
guide behind the list is in CONTRIBUTING.md.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Highest rate per 1000 words.
CEILINGS = {"clauses": 1.0, "tell/say": 0.8, "quaint": 0.2, "stands/lies": 0.0, "picture": 0.0}

PATTERNS = {
    "clauses": r"what|whoever|whatever|whichever",
    "tell/say": r"tells?|told|says?|said|speaks?",
    "quaint": r"anew|likewise|thereby|beforehand|meanwhile|alike|nobody|of\s+(?:its|their)\s+own",
    "stands/lies": r"(?:stands?|lies?)\s+(?:in|on|at|under|beside|before|behind|for|there|where)",
    "picture": r"pictures?",
}
GROUPS = {group: re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE) for group, pattern in PATTERNS.items()}
WORD = re.compile(r"[A-Za-z']+")

PACKAGES = ("app", "worker", "img2img")
PAGES = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "docs/**/*.md")

TOOL_COMMENT = re.compile(r"noqa|type: ignore")
FENCED_BLOCK = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`]*`")
CAPTION = re.compile(r"!\[[^\]]*\]")
NOT_NEWLINE = re.compile(r"[^\n]")


@dataclass(frozen=True)
class Passage:
    """A piece of prose and the line of the file on which it starts."""

    path: Path
    line: int
    text: str

    @property
    def words(self) -> int:
        return len(WORD.findall(self.text))

    def matches(self, group: str) -> Iterator[tuple[int, str]]:
        """Yield the line number and the text of each match of `group`."""
        for match in GROUPS[group].finditer(self.text):
            yield self.line + self.text.count("\n", 0, match.start()), match[0]


def python_passages(path: Path) -> Iterator[Passage]:
    """Yield the docstrings and comments of a Python file, without comments for linters."""
    source = path.read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node) is not None:
            statement = node.body[0]
            assert isinstance(statement, ast.Expr)
            assert isinstance(statement.value, ast.Constant)
            yield Passage(path, statement.lineno, str(statement.value.value))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not TOOL_COMMENT.search(token.string):
            yield Passage(path, token.start[0], token.string.lstrip("# "))


def markdown_passages(path: Path) -> Iterator[Passage]:
    """Yield the text of a Markdown file as one passage: without code, and without the captions of images."""
    text = path.read_text("utf-8")
    for ignored in (FENCED_BLOCK, INLINE_CODE, CAPTION):
        # Newlines stay, so that line numbers stay correct.
        text = ignored.sub(lambda match: NOT_NEWLINE.sub(" ", match[0]), text)
    yield Passage(path, 1, text)


def collections(root: Path) -> dict[str, list[Passage]]:
    """Return the passages of the project in `root`, by collection: `code` and `docs`."""
    modules = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    pages = [path for pattern in PAGES for path in sorted(root.glob(pattern))]
    return {
        "code": [passage for path in modules for passage in python_passages(path)],
        "docs": [passage for path in pages for passage in markdown_passages(path)],
    }


def rate(passages: Iterable[Passage], group: str) -> float:
    """Return the matches of `group` per 1000 words."""
    passages = list(passages)
    words = sum(passage.words for passage in passages)
    matches = sum(1 for passage in passages for _ in passage.matches(group))
    return 1000 * matches / max(words, 1)


def report(root: Path, *, verbose: bool) -> bool:
    """Print the rates, and the matches of groups above their ceiling. Return whether all groups pass."""
    passed = True
    for name, passages in collections(root).items():
        for group, ceiling in CEILINGS.items():
            measured = rate(passages, group)
            is_above = measured > ceiling
            passed = passed and not is_above
            print(f"{name} {group}: {measured:.2f} (at most {ceiling}){' FAILED' if is_above else ''}")
            if not is_above and not verbose:
                continue
            for passage in passages:
                for line, words in passage.matches(group):
                    print(f"  {passage.path.relative_to(root)}:{line}: {' '.join(words.split())}")
    return passed


def main() -> int:
    """Run the check and return the exit code."""
    parser = argparse.ArgumentParser(description="Check the language of docstrings, comments and Markdown.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1], help="root of the project")
    parser.add_argument("--verbose", action="store_true", help="print the matches of groups that pass, too")
    options = parser.parse_args()
    return 0 if report(options.folder, verbose=options.verbose) else 1


if __name__ == "__main__":
    sys.exit(main())
