"""Models that cannot be loaded."""

from collections.abc import Callable

import pytest

from img2img.worker.errors import StartupError


def load_failure(load: Callable[[], object]) -> str:
    """Return the one line with which loading the model `photo` fails."""
    with pytest.raises(StartupError) as raised:
        load()
    line = str(raised.value)
    assert line.startswith("cannot load model 'photo': ")
    assert len(line) < 300
    assert "\n" not in line
    return line
