"""Import fences that import-linter and ruff cannot express."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Packages whose relative imports would reach another one if they left it, because they are installed side by side.
PACKAGES = ("app", "worker", "demo_model")


def imports_of(folder: str) -> Iterator[tuple[Path, ast.Import | ast.ImportFrom]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield path.relative_to(ROOT), node


def test_engine_imports_no_other_library() -> None:
    imported = set()
    for _path, node in imports_of("worker/engine"):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif node.level == 0:
            imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "greenlet", "cachetools"}


@pytest.mark.parametrize("package", PACKAGES)
def test_relative_imports_stay_in_their_package(package: str) -> None:
    leaving = [
        f"{path}:{node.lineno}"
        for path, node in imports_of(package)
        if isinstance(node, ast.ImportFrom) and node.level >= len(path.parts)
    ]
    assert not leaving


def test_domain_imports_only_pydantic() -> None:
    imported = set()
    for _path, node in imports_of("img2img/domain"):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
        imported |= {name if name.startswith("img2img.") else name.partition(".")[0] for name in names}
    others = {name for name in imported if not name.startswith("img2img.domain")}
    # pydantic_core is the core of pydantic; typing_extensions, a dependency of it, has a feature of Python 3.12.
    assert others - sys.stdlib_module_names == {"pydantic", "pydantic_core", "typing_extensions"}
