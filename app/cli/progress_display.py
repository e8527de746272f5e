"""Displays the progress of several jobs on a terminal."""

import time
from contextlib import ExitStack
from io import BytesIO
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from img2img.client import Event, Job, PreviewEvent, ProgressEvent, QueuedEvent
from img2img.printable import printable

from .errors import WrongUsage
from .printing import above_display

# The most pixels of a preview: two to a character cell.
PREVIEW_SIZE = (64, 64)
# The most jobs that have a row each.
ROWS = 12
# Jobs after whose end the time left is computed from their rate, instead of the estimate of the service.
MEASURED = 5


def check_previews() -> None:
    """Raise `WrongUsage` if the packages that draw previews are not installed."""
    try:
        import rich_pixels  # noqa: F401
    except ModuleNotFoundError:
        raise WrongUsage("--watch needs more packages: pip install 'img2img-server[watch]'") from None


class ProgressDisplay:
    """A row for all jobs, and one for each job that runs or comes next. Draws only on a terminal.

    While it is shown, printed lines appear above it.

    Args:
        total: Number of images of the command.
    """

    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=30)),
            BarColumn(bar_width=None, table_column=Column(min_width=8, max_width=40)),
            TextColumn("{task.fields[state]}", markup=False, table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
        )
        self._console = console
        self._progress = Progress(*columns, console=console, expand=True)
        self._preview: RenderableType = ""
        self._live: Live | None = None
        if console.is_terminal:
            # Lines are printed above the display by `printing`.
            self._live = Live(
                get_renderable=self._screen, console=console, redirect_stdout=False, redirect_stderr=False
            )
        self._most = max(min(ROWS, console.height - 4), 1)
        self._total = total
        self._sent = self._ended = 0
        self._started_at = time.monotonic()
        # When the last job should end, by the service's estimates.
        self._done_at: float | None = None
        self._all = self._progress.add_task("all" if total > 1 else "sending", total=total, state="")
        self._rows: dict[str, TaskID] = {}
        self._shown: set[str] = set()
        self._exit = ExitStack()
        self._update_all()

    def __enter__(self) -> Self:
        if self._live:
            self._exit.enter_context(above_display(self._console))
            self._exit.callback(self._live.stop)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._preview = ""
        for job_id in list(self._shown):
            self._hide(job_id)
        self._exit.close()

    @property
    def is_visible(self) -> bool:
        """Whether stderr is a terminal."""
        return self._live is not None

    def _screen(self) -> RenderableType:
        return Group(self._progress, self._preview) if self._preview else self._progress

    def preview(self, event: PreviewEvent) -> None:
        """Show a preview below the rows, with two pixels to a character cell."""
        from PIL import Image
        from rich_pixels import Pixels

        with Image.open(BytesIO(event.jpeg)) as image:
            image.thumbnail(PREVIEW_SIZE)
            self._preview = Pixels.from_image(image)

    def add(self, name: str, job: Job) -> None:
        """Add a job that was submitted."""
        self._sent += 1
        if job.eta_s is not None:
            self._done_at = max(self._done_at or 0, time.monotonic() + job.eta_s)
        event = QueuedEvent(id=job.id, queue_position=job.queue_position, eta_s=job.eta_s)
        self._rows[job.id] = self._progress.add_task(printable(name), total=None, state=_queued(event), visible=False)
        self._show(job.id)
        self._update_all()

    def show(self, job_id: str, event: Event | Exception) -> None:
        """Update the row of a job. It is removed when the job has ended."""
        if isinstance(event, Exception | Job):
            self._hide(job_id)
            self._ended += 1
            self._update_all()
        elif isinstance(event, QueuedEvent):
            self._progress.update(self._rows[job_id], state=_queued(event))
        elif isinstance(event, ProgressEvent):
            self._show(job_id)
            step, steps = event.progress.step, event.progress.steps
            self._progress.update(self._rows[job_id], total=steps, completed=step, state=f"step {step} of {steps}")

    def end(self) -> None:
        """Count an image that has no job to follow."""
        self._sent += 1
        self._ended += 1
        self._update_all()

    def _show(self, job_id: str) -> None:
        if len(self._shown) < self._most:
            self._shown.add(job_id)
            self._progress.update(self._rows[job_id], visible=True)

    def _hide(self, job_id: str) -> None:
        self._shown.discard(job_id)
        self._progress.update(self._rows[job_id], visible=False)

    def _update_all(self) -> None:
        words = [f"{self._ended} of {self._total}"]
        if self._sent < self._total:
            words.append(f"{self._sent} sent")
        left_s = self._left_s()
        if left_s:
            words.append(f"done in {duration(left_s)}")
        has_row = self._total == 1 and self._sent == 1
        self._progress.update(self._all, completed=self._ended, state=", ".join(words), visible=not has_row)

    def _left_s(self) -> float | None:
        """Return the seconds until all jobs have ended, as far as known."""
        now = time.monotonic()
        if MEASURED <= self._ended < self._total:
            return (now - self._started_at) / self._ended * (self._total - self._ended)
        if self._ended == self._total or self._done_at is None or self._done_at < now:
            return None
        return self._done_at - now


def _queued(event: QueuedEvent) -> str:
    words = ["queued"]
    if event.queue_position is not None:
        words.append("next" if event.queue_position == 0 else f"{event.queue_position} ahead")
    if event.eta_s is not None:
        words.append(f"done in {duration(event.eta_s)}")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """Return a duration as text: 12 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
