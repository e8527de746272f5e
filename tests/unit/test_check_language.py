"""scripts/check_language.py on small trees of files."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.check_language import CEILINGS, GROUPS, collections, rate

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_language.py"

MODULE = '''"""Return the job.

It tells nobody.
"""
# The picture stands
# in a comment.
x = "a picture in a string literal is not prose"  # noqa: S105 says the linter
y = 1  # anew


def f():
    """Return the image of its
    own job."""
'''
PAGE = """# Title

Plain words about an image, `the picture in code`, and
![a caption with a picture](a.png).

```python
picture = what()
```

This lies
at the end.
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "docs" / "tasks").mkdir(parents=True)
    (tmp_path / "app" / "module.py").write_text(MODULE)
    (tmp_path / "docs" / "tasks" / "page.md").write_text(PAGE)
    return tmp_path


def run(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *options, root], capture_output=True, text=True)


def matches(root: Path, collection: str, group: str) -> list[tuple[int, str]]:
    return [match for passage in collections(root)[collection] for match in passage.matches(group)]


def test_matches_docstrings_and_comments_with_line_numbers(root: Path) -> None:
    assert matches(root, "code", "tell/say") == [(3, "tells")]
    assert sorted(matches(root, "code", "quaint")) == [(3, "nobody"), (8, "anew"), (12, "of its\n    own")]
    assert matches(root, "code", "picture") == [(5, "picture")]


def test_matches_markdown_without_code_and_captions(root: Path) -> None:
    assert matches(root, "docs", "picture") == []
    assert matches(root, "docs", "clauses") == []
    assert matches(root, "docs", "stands/lies") == [(10, "lies\nat")]


def test_rate_is_per_thousand_words(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("word " * 499 + "what")
    assert rate(collections(tmp_path)["docs"], "clauses") == 2


def test_prints_failing_lines_and_exits_with_1(root: Path) -> None:
    result = run(root)
    assert result.returncode == 1
    assert "code picture: " in result.stdout
    assert "  app/module.py:5: picture\n" in result.stdout
    assert "  docs/tasks/page.md:10: lies at\n" in result.stdout


def test_prints_no_lines_of_groups_that_pass(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("word " * 1999 + "what")
    result = run(tmp_path)
    assert result.returncode == 0
    assert "README.md" not in result.stdout
    verbose = run(tmp_path, "--verbose")
    assert verbose.returncode == 0
    assert "  README.md:1: what\n" in verbose.stdout


def test_every_group_has_a_ceiling() -> None:
    assert GROUPS.keys() == CEILINGS.keys()
