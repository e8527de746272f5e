"""The locks in requirements/ are what `make lock` would make of pyproject.toml and constraints.txt."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def pins(file: str) -> dict[str, str]:
    """Versions by the names of what a file pins."""
    return {canonicalize_name(name): version for name, version in PINNED.findall((ROOT / file).read_text())}


def asked_for(extra: str) -> list[Requirement]:
    """What an extra needs directly, with the extras that it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [*map(Requirement, project["dependencies"])]
    for requirement in map(Requirement, project["optional-dependencies"][extra]):
        if requirement.name == "img2img":
            found += [one for name in requirement.extras for one in asked_for(name)]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("extra", ["api", "worker", "dev"])
def test_a_lock_holds_what_its_extra_needs_in_the_versions_that_are_tested(extra: str) -> None:
    locked, tested = pins(f"requirements/{extra}.txt"), pins("constraints.txt")
    for requirement in asked_for(extra):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement
    both = locked.keys() & tested.keys()
    assert {name: locked[name] for name in both} == {name: tested[name] for name in both}


@pytest.mark.parametrize("extra", ["api", "worker", "dev"])
def test_everything_in_a_lock_has_hashes(extra: str) -> None:
    text = (ROOT / f"requirements/{extra}.txt").read_text()
    requirements = text.replace("\\\n", "").splitlines()
    listed = [line for line in requirements if line and not line.startswith("#")]
    assert len(listed) == len(pins(f"requirements/{extra}.txt"))
    assert all("--hash=sha256:" in line for line in listed)


def test_the_development_lock_holds_all_that_is_tested() -> None:
    assert pins("constraints.txt").keys() <= pins("requirements/dev.txt").keys()
