"""What a run has found: tables on the terminal, and all of it as JSON after each part."""

import json
import platform
import subprocess
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Row = Mapping[str, Any]


class Report:
    """Prints results as they are found.

    Args:
        file: gets everything as JSON whenever something was added, so that a run that is killed leaves its results.
    """

    def __init__(self, file: Path | None, machine: Mapping[str, Any]) -> None:
        self._file = file
        self._content: dict[str, Any] = {
            "machine": dict(machine),
            "tables": [],
            "notes": [],
            "goals": [],
            "failures": [],
        }
        for name, value in machine.items():
            print(f"- {name}: {value}")
        self._save()

    def table(self, title: str, rows: Sequence[Row]) -> None:
        """Add a table. Each row has a cell for each column that applies to it."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in rows:
            print(f"| {' | '.join(cell(row.get(name)) for name in columns)} |")
        print(flush=True)
        self._content["tables"].append({"title": title, "rows": [dict(row) for row in rows]})
        self._save()

    def note(self, line: str) -> None:
        """Add a line, such as which part was skipped and why."""
        print(f"- {line}", flush=True)
        self._content["notes"].append(line)
        self._save()

    def goal(
        self,
        name: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        decides: bool = False,
    ) -> None:
        """Add a goal.

        Args:
            decides: whether the run fails if it is missed. Goals that depend on the card do not.
        """
        is_met = value <= at_most if at_most is not None else value >= (at_least or 0)
        limit = f"at most {cell(at_most)}" if at_most is not None else f"at least {cell(at_least)}"
        print(f"- {'met' if is_met else 'MISSED'}: {name}: {cell(value)}, goal {limit}", flush=True)
        self._content["goals"].append({"name": name, "value": value, "limit": limit, "met": is_met, "decides": decides})
        self._save()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note the error of a part instead of ending the run."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            line = f"{name} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"- {line}", flush=True)
            self._content["failures"].append(line)
            self._save()

    @property
    def is_good(self) -> bool:
        """Whether no part has failed, and no goal was missed that decides."""
        goals = self._content["goals"]
        return not self._content["failures"] and all(goal["met"] for goal in goals if goal["decides"])

    def _save(self) -> None:
        if self._file is not None:
            self._file.write_text(json.dumps(self._content, indent=2, default=str) + "\n")


def cell(value: Any) -> str:
    """Return a value as a cell of a table: numbers with three digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return card, driver, versions, clocks and limits."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "diffusers", "transformers", "torchao"))
    found = {"device": str(device), "python": platform.python_version(), "versions": versions}
    if device.type != "cuda":
        return {**found, "threads": str(torch.get_num_threads()), "processor": platform.machine()}
    fields = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, check=True, text=True, timeout=20).stdout.splitlines()[0]
        found |= dict(zip(fields.split(","), (value.strip() for value in answer.split(",")), strict=False))
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        found |= {"name": torch.cuda.get_device_name(device), "nvidia-smi": f"failed: {error}"}
    return {**found, "cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
