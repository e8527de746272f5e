"""Benchmarks that have to run at the first try, on a machine that is rarely at hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import aiperf, check, plot
from benchmarks.gpu import pixels
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.occupancy import covered
from benchmarks.gpu.report import Report, cell
from benchmarks.gpu.shapes import SHAPES
from benchmarks.gpu.target import Target
from benchmarks.workload import jobs
from tests.support.engines import one_thread  # noqa: F401
from tests.support.model_cards import CARD

ROOT = Path(__file__).parents[2]


def test_pixels_are_compared_in_each_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    report = Report(file, {"device": "cpu"})
    pixels.run(Target("cpu", tiny=True), SHAPES["turbo"], Budget(600), report)
    results = json.loads(file.read_text())
    assert not results["failures"]
    # Calls of float16 that are merged may round on a CPU, which depends on when the jobs arrive.
    may_round = "turbo in float16: engine in company, to engine alone, in 1/255"
    for goal in results["goals"]:
        assert goal["met"] or (goal["name"] == may_round and goal["value"] <= 1), goal
    assert [table["title"].split()[1:4] for table in results["tables"]] == [
        ["turbo", "in", f"{dtype},"] for dtype in ("float32", "float16", "bfloat16")
    ]
    assert len(results["goals"]) == 9
    assert "| stock, again | 0 |" in capsys.readouterr().out


def test_run_fails_by_a_part_and_by_a_goal_that_decides() -> None:
    report = Report(None, {})
    report.goal("images/s", 0.9, at_least=1.1)
    assert report.is_good
    report.goal("pixels", 2, at_most=1, decides=True)
    assert not report.is_good
    report = Report(None, {})
    with report.part("levers"):
        raise RuntimeError("no compiler")
    assert not report.is_good


def test_time_that_a_part_leaves_is_for_those_after_it() -> None:
    lefts = [share.left for share in Budget(100).shares([1, 3])]
    assert lefts == [pytest.approx(25, abs=1), pytest.approx(100, abs=1)]


def test_busy_time_is_that_of_all_streams_together() -> None:
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert covered([]) == 0


def test_cells_have_three_digits() -> None:
    assert [cell(value) for value in (1234.5, 0.01234, 3, None)] == ["1234", "0.0123", "3", ""]


def test_checkout_is_used_where_the_project_is_not_installed() -> None:
    code = (
        "import sys\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]\n"
        "import benchmarks.gpu, img2img.worker.errors, img2img.app\n"
        "print(img2img.worker.errors.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "/img2img/worker/errors.py" in done.stdout


def test_a_ratio_may_rise_and_a_figure_of_exactness_may_not_change() -> None:
    baseline = {"ratios": {"a": 2.0, "b": 2.0, "c": 2.0}, "exactness": {"x": 1.0, "y": 1.0}}
    _, failures = check.compare(baseline, {"a": 1.85, "b": 3.0, "new": 1.0}, {"x": 1.0})
    assert not failures
    _, failures = check.compare(baseline, {"c": 1.7}, {"y": 0.0})
    assert failures == ["c fell from 2 to 1.7", "y was 1 and is 0"]


def test_baseline_is_named_after_processor_and_cores() -> None:
    assert check.name_of({"processor": "Intel(R) Xeon(R) Processor @ 2.1GHz", "cores": 2}) == (
        "intel-xeon-processor-2-1ghz-2-cores"
    )


def test_results_of_aiperf_are_read_and_their_table_can_be_drawn() -> None:
    # Of a run of AIPerf 0.13 on a busy machine.
    file = Path(__file__).parent / "aiperf_result.json"
    rows = [aiperf.read_result(file, "mixed", 2, server) for server in ("img2img", "LitServe")]
    assert rows[0] == aiperf.Row(
        mix="mixed",
        concurrency=2,
        server="img2img",
        requests=4,
        errors=0,
        per_s=pytest.approx(0.0806, abs=1e-4),
        p50=pytest.approx(23592, abs=1),
        p90=pytest.approx(35721, abs=1),
        p99=pytest.approx(37745, abs=1),
    )
    lines = aiperf.table(rows)
    assert lines[2] == "| mixed | 2 | img2img | 4 | 0 | 0.08 | 1.00x | 23.59 s | 35.72 s | 37.74 s |"
    drawn = plot.svg(aiperf.bars(rows), "LitServe at the lowest concurrency")
    assert drawn.count(">1.00x (0.08/s)<") == 2
    assert ">mixed jobs, 2 at once<" in drawn


def test_requests_for_aiperf_have_parameters_of_their_own(tmp_path: Path) -> None:
    work = jobs("mixed", CARD, 8, 1, side=64)
    lines = aiperf.write_requests(tmp_path / "requests", work).read_text().splitlines()
    requests = [json.loads(line) for line in lines]
    assert [Path(request["image"]).read_bytes() for request in requests] == [job.png for job in work]
    for name in ("strength", "seed"):
        assert [float(request["extra"][name]) for request in requests] == [getattr(job.spec, name) for job in work]
    assert len({request["text"] for request in requests}) == 8
    assert {request["extra"]["size"] for request in requests} == {"64x64"}
