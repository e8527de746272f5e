"""The modules in scripts/, which are not part of a package."""

import importlib.util
from types import ModuleType

from tests.support.pages import ROOT


def load_script(name: str) -> ModuleType:
    """Return a new module from scripts/{name}.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
