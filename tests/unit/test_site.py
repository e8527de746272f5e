"""The documentation as a site."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; a warning, such as a link that leads nowhere, is an error."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert re.findall(r"""<(?:script|img|iframe)[^>]* src=["']?https?:""", text) == [], page
        assert re.findall(r"""<link[^>]* rel=["']?stylesheet[^>]* href=["']?https?:""", text) == [], page


def test_pages_of_the_repository_are_on_the_site(site: Path) -> None:
    for name in ("index", "CHANGELOG", "SECURITY", "CONTRIBUTING", "benchmarks/RESULTS"):
        assert (site / "project" / f"{name}.html").exists()
    assert "(api.html)" in (site / "llms.txt").read_text()
    changelog = (site / "project" / "CHANGELOG.html").read_text()
    assert 'href="../docs/' not in changelog


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("rest", "post-img2img"),
        ("settings", "img2img_result_ttl"),
        ("cli", "img2img-models-add"),
        ("client", "img2img.client.sync_client.Client.submit"),
    ],
)
def test_reference_is_made_from_the_code(site: Path, name: str, heading: str) -> None:
    assert f'id="{heading}"' in (site / "reference" / f"{name}.html").read_text("utf-8")
