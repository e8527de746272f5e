"""How much time is left, and how it is shared by the parts of a run."""

import time
from collections.abc import Iterator, Sequence


class Budget:
    """Seconds that a part may take, from now on."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left. Negative once they are used up."""
        return self._end - time.monotonic()

    def shares(self, weights: Sequence[float]) -> Iterator["Budget"]:
        """Yield a budget for each part, in proportion to its weight. What a part leaves is for those after it."""
        for i, weight in enumerate(weights):
            yield Budget(self.left * weight / sum(weights[i:]))
