"""A worker that a job with the prompt POISON kills, as a fault in a kernel or a driver would.

`python -P poisoned_worker.py` runs it with the package that PYTHONPATH names. It imports nothing else of the tests, so
that it runs with an earlier release.
"""

import os
import signal
import sys
from typing import Any

POISON = "kills its worker"


def poison() -> None:
    """Make the worker of this process end itself when it prepares such a job."""
    # Imported here because the process that starts workers does not need torch.
    import img2img.worker.__main__

    class KilledByPoison(img2img.worker.__main__.JobRunner):
        def prepare(self, spec: Any, *arguments: Any, **options: Any) -> Any:
            if spec.prompt == POISON:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().prepare(spec, *arguments, **options)

    img2img.worker.__main__.JobRunner = KilledByPoison  # type: ignore[misc]


if __name__ == "__main__":
    import torch

    from img2img.worker.__main__ import main

    poison()
    torch.set_num_threads(1)
    sys.exit(main())
