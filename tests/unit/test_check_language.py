"""scripts/check_language.py on small trees of files."""

import sys
from pathlib import Path

import pytest

from scripts.check_language import CEILINGS, GROUPS, collections, main, rate

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


class Run:
    """Runs the script in this process with command line options."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *options: object) -> tuple[int, str]:
        """Return the exit code and the output."""
        self._monkeypatch.setattr(sys, "argv", ["check_language.py", *map(str, options)])
        code = main()
        return code, self._capsys.readouterr().out


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


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


def test_prints_failing_lines_and_exits_with_1(root: Path, run: Run) -> None:
    code, output = run(root)
    assert code == 1
    assert "code picture: " in output
    assert "  app/module.py:5: picture\n" in output
    assert "  docs/tasks/page.md:10: lies at\n" in output


def test_prints_no_lines_of_groups_that_pass(tmp_path: Path, run: Run) -> None:
    (tmp_path / "README.md").write_text("word " * 1999 + "what")
    code, output = run(tmp_path)
    assert code == 0
    assert "README.md" not in output
    code, output = run("--verbose", tmp_path)
    assert code == 0
    assert "  README.md:1: what\n" in output


def test_every_group_has_a_ceiling() -> None:
    assert GROUPS.keys() == CEILINGS.keys()
