"""The table that an evaluation prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


class Figures:
    """Rows of the table: measure, value, and whether the value reaches the target."""

    def __init__(self) -> None:
        self._table = Table("figure", "measured", "at least", "reached")

    def at_least(self, name: str, value: float, bound: float, digits: int = 2) -> None:
        self._table.add_row(name, f"{value:.{digits}f}", f"{bound:g}", "yes" if value >= bound else "no")

    def at_most(self, name: str, value: float, bound: float, digits: int = 3) -> None:
        self._table.add_row(name, f"{value:.{digits}f}", f"<= {bound:g}", "yes" if value <= bound else "no")

    def holds(self, name: str, value: str, reached: bool) -> None:
        self._table.add_row(name, value, "", "yes" if reached else "no")

    def times(self, name: str, value: float, other: float, bound: float) -> None:
        """Add a ratio of the value to `other`, with both values."""
        reached = "yes" if value >= bound * other else "no"
        self._table.add_row(name, f"{value:.3f} / {other:.3f} = {value / max(other, 1e-9):.2f}", f"{bound:g}", reached)

    def mention(self, name: str, value: str) -> None:
        self._table.add_row(name, value, "", "")

    def print(self) -> None:
        Console(width=150).print(self._table)
