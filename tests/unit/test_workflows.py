"""The files in `.github` are YAML, and their commands are make targets."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_files_are_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_make_targets(path: Path) -> None:
    workflow: dict[str, Any] = yaml.safe_load(path.read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets_run = {command.removeprefix("make ") for command in commands if command.startswith("make ")}
    assert targets_run
    assert targets_run <= targets


def test_every_ci_runs_make_test() -> None:
    assert "- run: make test\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
