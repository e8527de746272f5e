"""Growth of a value over time."""

from collections.abc import Sequence

import numpy as np


def slope_per_hour(at_s: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return the slope of the least-squares line and its standard error. Needs at least three values."""
    hours = np.array(at_s) / 3600
    (slope, _), residuals, *_ = np.polyfit(hours, values, 1, full=True)
    squares = float(residuals[0]) if len(residuals) else 0.0
    spread = float(((hours - hours.mean()) ** 2).sum())
    return float(slope), (squares / max(1, len(values) - 2) / spread) ** 0.5
