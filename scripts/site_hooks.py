"""Hooks of MkDocs: further pages of the site.

Pages of the repository that are not in docs/ are below project/, and pages that are made from code below reference/.

Links in the sources are those of the repository. A link to a file outside of docs/ leads to its copy on the site; a
link to a folder becomes plain text.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure import StructureItem
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

from scripts import site_reference

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "README.zh-CN.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/RESULTS.md")
# Text and target of links and images; not within code.
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
EXTERNAL = re.compile(r"[a-z]+:|#")
# The navigation of the site, for llms.txt.
_navigation: list[StructureItem] = []
# Pages that are made from code, whose links are those of the site.
_generated: set[str] = set()


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages, and the files to which any page links."""
    for page in PAGES:
        files.append(File.generated(config, f"project/{page}", content=(ROOT / page).read_text("utf-8")))
    pages = [file for file in files if file.src_uri.endswith(".md")]
    for uri, content in site_reference.pages().items():
        _generated.add(uri)
        files.append(File.generated(config, uri, content=content))
    for file in pages:
        source = _source(file.src_uri)
        for _, _, target in _links((ROOT / source).read_text("utf-8")):
            path = _resolve(source, target)
            uri = _uri(path)
            if (ROOT / path).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_others: object) -> str:
    """Point the links of a page at the site."""
    if page.file.src_uri in _generated:
        return markdown
    source = _source(page.file.src_uri)

    def point(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if EXTERNAL.match(target):
            return match[0]
        path = _resolve(source, target)
        if not (ROOT / path).is_file():
            return text
        anchor = target.partition("#")[2]
        uri = posixpath.relpath(_uri(path), posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{text}]({uri}{'#' if anchor else ''}{anchor})"

    parts, at = [], 0
    for code in FENCE.finditer(markdown):
        parts += [LINK.sub(point, markdown[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*parts, LINK.sub(point, markdown[at:])])


def on_nav(nav: Navigation, **_others: object) -> Navigation:
    """Note the navigation for llms.txt."""
    _navigation[:] = nav.items
    return nav


def on_post_build(*, config: MkDocsConfig) -> None:
    """Write llms.txt, which lists the pages for language models (https://llmstxt.org)."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    for item in _navigation:
        pages = [item] if isinstance(item, Page) else [page for page in item.children or () if isinstance(page, Page)]
        lines += ["", f"## {item.title}", "", *(f"- [{page.title}]({page.url})" for page in pages)]
    (Path(config.site_dir) / "llms.txt").write_text("\n".join([*lines, ""]), "utf-8")


def _links(markdown: str) -> list[tuple[str, str, str]]:
    found = LINK.findall(FENCE.sub("", markdown))
    return [link for link in found if not EXTERNAL.match(link[2])]


def _source(uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    return uri.removeprefix("project/") if uri.startswith("project/") else f"docs/{uri}"


def _uri(path: str) -> str:
    """Return the path on the site of a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"project/{path}"


def _resolve(source: str, target: str) -> str:
    """Return the path in the repository that a link of a file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target.partition("#")[0]))
