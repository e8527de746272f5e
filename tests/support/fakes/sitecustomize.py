"""Replace `img2img.worker` by `echo_worker` in processes with this folder in PYTHONPATH."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

REPLACED = "img2img.worker"
REPLACEMENT = Path(__file__).parent / "echo_worker"


class _Replacement(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == REPLACED:
            return importlib.util.spec_from_file_location(
                fullname, REPLACEMENT / "__init__.py", submodule_search_locations=[str(REPLACEMENT)]
            )
        return None


sys.meta_path.insert(0, _Replacement())
