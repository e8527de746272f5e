"""README and docs: links, files, targets and settings exist, and tables agree with the code."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plot
from img2img.app.cli import app as command_line
from img2img.app.compat.a1111 import neutral
from img2img.app.compat.a1111.request import OverrideSettings, WebUIRequest
from img2img.app.openapi import error_reference
from img2img.app.openapi.error_causes import CAUSES
from img2img.app.schemas.requests import ControlRequest, Img2ImgRequest
from img2img.domain.api_key import Scope
from img2img.domain.job import TRANSITIONS, JobFailure
from img2img.domain.parameters import Scheduler, Task
from img2img.redis import job_queue
from scripts import error_reference as error_pages
from scripts import model_keys, model_schema, sampler_table
from tests.support.pages import PAGES, ROOT, blocks, fences, names, page, page_id, table, without_code

# Codes of errors that no class of img2img.errors and app/http/errors.py has: job failures, and HTTP errors by status.
OTHER_CODES = {"internal_error", "method_not_allowed", "storage_unavailable", "unreadable"}
# No client sees them: a cancelled job has no error, and the others are base classes.
UNUSED_CODES = {"cancelled", "error", "too_many_requests"}

pages = pytest.mark.parametrize("path", PAGES, ids=page_id)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text("utf-8")))
    return [target for target in targets if not target.startswith(("http://", "https://", "mailto:"))]


@pages
def test_links_lead_to_files_and_headings(path: Path) -> None:
    broken = []
    for link in links(path):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            broken.append(link)
    assert broken == []


@pages
def test_named_files_exist(path: Path) -> None:
    folders = "app|worker|img2img|tests|scripts|docker|docs|demo_model|benchmarks|requirements|examples"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", path.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pages
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    named = re.findall(r"(?:^ *|`)make ([a-z-]+)", path.read_text("utf-8"), re.MULTILINE)
    assert set(named) <= targets


@pages
def test_settings_exist(path: Path) -> None:
    known = {*re.findall(r"IMG2IMG_\w+", page(".env.example")), "IMG2IMG_URL"}
    assert set(re.findall(r"IMG2IMG_\w+", path.read_text("utf-8"))) <= known


@pages
def test_lines_are_at_most_200_characters_except_in_tables(path: Path) -> None:
    # A line break within a Chinese paragraph is shown as a space.
    lines = [] if path.suffixes == [".zh-CN", ".md"] else path.read_text("utf-8").splitlines()
    assert [line for line in lines if len(line) > 200 and not line.startswith("|")] == []


def test_readme_is_short() -> None:
    assert len(page("README.md").splitlines()) <= 180


def outline(text: str) -> list[tuple[str, str]]:
    """Return the levels of headings, the code blocks, the images and the targets of links, in their order."""
    found = re.findall(r"^(#+) |^(```.*?^```)|\]\(([^)\s]+)\)", text, re.MULTILINE | re.DOTALL)
    # Comments of code are translated.
    return [next(filter(None, one)) for one in ((a, re.sub(r" +#.*", "", b), c) for a, b, c in found)]


def test_chinese_readme_has_the_content_of_the_english_one() -> None:
    chinese, english = page("README.zh-CN.md"), page("README.md")
    # Each names the other, and Chinese anchors are Chinese.
    assert outline(chinese.replace("README.md", "README.zh-CN.md", 1)) == outline(english)
    assert sorted(names(without_fences(chinese))) == sorted(names(without_fences(english)))
    assert len(re.findall(r"[\u4e00-\u9fff]", chinese)) > 1000


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_plot_has_the_recorded_results() -> None:
    assert page("docs/images/throughput.svg") == plot.svg(plot.recorded(), "stock diffusers"), (
        "`python -m benchmarks.plot`"
    )


def test_figures_of_the_readme_are_those_of_their_sources() -> None:
    readme, results = page("README.md"), table(page("benchmarks/RESULTS.md"), "## Throughput")
    ours, theirs = ([row for row in results if row[0].startswith(name)] for name in ("this engine, 16", "LitServe"))
    assert f"{ours[0][2].rstrip('x')} times the images per second" in readme
    assert f"uniform jobs: {ours[0][4].rstrip('x')} times" in readme
    assert f"(LitServe): {max(row[2] for row in theirs).rstrip('x')} times" in readme
    families = page("docs/families.md")
    served, unmeasured = (len(table(families, heading)) for heading in ("## Served\n", "## Served, but not measured"))
    assert f"{served + unmeasured} classes, {served} of them compared pixel by pixel" in readme
    assert "1,000 jobs, 62 kills, 42 other faults" in page("docs/reliability.md")


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    listed |= {(ROOT / "docs" / "adr" / link).resolve() for link in links(ROOT / "docs" / "adr" / "README.md")}
    assert {path for path in PAGES if path.is_relative_to(ROOT / "docs") and path != index} <= listed


# Code blocks without a caption are run: those of docs/how-to by tests/e2e/test_demo_model.py, these by test_readme.py.
RUN = re.compile(
    r"curl -s http\S+ .*\n\Z|job=\$\(curl|img2img submit \S*\*|(?s:.*)(http://127.0.0.1:8000|standardwebhooks)"
)
DATA = {"", "caddy", "json", "mermaid", "nginx", "text", "toml", "yaml"}


@pages
def test_code_blocks_are_run_or_have_a_reason(path: Path) -> None:
    is_how_to = path.parent.name == "how-to"
    code = [(language, block) for language, title, block in fences(path) if language not in DATA and title is None]
    assert {language for language, _ in code} <= {"bash", "python", "typescript"}
    assert [block for _, block in code if not (is_how_to or RUN.match(block))] == []


def test_data_blocks_can_be_parsed() -> None:
    assert [json.loads(block) for block in blocks("json")]
    assert [tomllib.loads(block) for block in blocks("toml")]


def test_request_fields_are_documented() -> None:
    rows = table(page("docs/api.md"), "## Request fields")
    assert sorted(name for row in rows for name in names(row[0])) == sorted(Img2ImgRequest.model_fields)


def test_schedulers_are_documented() -> None:
    [row] = [row for row in table(page("docs/api.md"), "## Request fields") if names(row[0]) == ["scheduler"]]
    assert names(row[1]) == [scheduler.value for scheduler in Scheduler]


def test_control_fields_are_documented() -> None:
    rows = table(page("docs/tasks.md"), "| field of a control")
    assert sorted(name for row in rows for name in names(row[0])) == sorted(ControlRequest.model_fields)


def test_tasks_are_documented() -> None:
    rows = table(page("docs/tasks.md"), "# Tasks")
    assert [names(row[0])[0] for row in rows] == [task.value for task in Task]


def test_endpoints_are_documented() -> None:
    document: dict[str, Any] = json.loads(page("openapi.json"))
    operations = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    rows = table(page("docs/api.md"), "## Endpoints") + table(
        page("docs/api.md"), "| `POST /batches` | Submits a batch."
    )
    text = " ".join(name for row in rows for cell in row for name in names(cell))
    text = text.replace("batches/{id}", "batches/{batch_id}").replace("{id}", "{job_id}")
    assert {operation for operation in operations if operation not in text} == set()


def test_error_codes_are_explained() -> None:
    failures = {value.code for value in vars(job_queue).values() if isinstance(value, JobFailure)}
    known = {kind.code for kind in error_reference.raised()} | failures | OTHER_CODES
    assert set(CAUSES) == known - UNUSED_CODES
    assert [entry.code for entry in error_reference.entries() if not (entry.statuses or entry.is_of_jobs)] == []


def test_page_of_errors_is_up_to_date() -> None:
    assert page("docs/errors.md") == error_pages.text(), "run `make errors`"


def test_scopes_are_documented() -> None:
    rows = table(page("docs/authentication.md"), "## Scopes")
    assert [names(row[0])[0] for row in rows] == [scope.value for scope in Scope]


def test_tables_of_schedulers_are_up_to_date() -> None:
    assert sampler_table.updated(page("docs/schedulers.md")) == page("docs/schedulers.md"), "run `make sampler-table`"


def test_keys_of_the_model_file_are_those_of_the_code() -> None:
    assert model_keys.updated(page("docs/models.md")) == page("docs/models.md"), "run `make model-keys`"


def test_schema_of_the_model_file_is_that_of_the_code() -> None:
    assert model_schema.FILE.read_text("utf-8") == model_schema.text(), "run `make model-schema`"


def test_commands_are_documented() -> None:
    commands = {
        command.name or command.callback.__name__ for command in command_line.registered_commands if command.callback
    }
    rows = table(page("docs/cli.md"), "# Command line")
    documented = {name.removeprefix("img2img ").split()[0] for row in rows for name in names(row[0])}
    assert commands | {"keys"} <= documented


def test_job_states_are_those_of_the_code() -> None:
    diagram = page("docs/architecture.md").partition("## Job states")[2].partition("## ")[0]
    arrows = set(re.findall(r"^ *(\w+) --> (\w+)", diagram, re.MULTILINE))
    assert arrows == {(before.value, after.value) for before, afters in TRANSITIONS.items() for after in afters}


def test_parameters_have_every_name_of_the_apis() -> None:
    """No field of a request or of the web UI's API is missing. Of arguments of pipelines, see the engine's tests."""
    named = set(names(page("docs/parameters.md")))
    assert set(Img2ImgRequest.model_fields) - named == set()
    web_ui = {*WebUIRequest.model_fields, *OverrideSettings.model_fields, *neutral.REASONS}
    assert web_ui - named == set()
