"""Follows several jobs at once and displays their progress on a terminal."""

import threading
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from img2img.client import Client, Event, Job, PreviewEvent, ProgressEvent, QueuedEvent
from img2img.printable import printable

from .errors import WrongUsage

# Event streams that are open at once. Jobs end about in the order in which they were submitted.
STREAMS = 16
IDLE_S = 0.2
# The most pixels of a preview: two to a character cell.
PREVIEW_SIZE = (64, 64)
# The most jobs that have a row each.
ROWS = 12

# A job's id, and its event or the error that ended its stream.
Update = tuple[str, Event | Exception]


def follow_jobs(
    client: Client, job_ids: list[str], on_idle: Callable[[], None], *, preview: bool = False
) -> Iterator[Update]:
    """Yield the events of the jobs until each has ended or its stream has failed.

    Daemon threads read the streams, so that Ctrl-C interrupts the main thread at once.
    """
    updates: SimpleQueue[Update] = SimpleQueue()
    waiting: SimpleQueue[str] = SimpleQueue()
    for job_id in job_ids:
        waiting.put(job_id)
    for _ in range(min(STREAMS, len(job_ids))):
        threading.Thread(target=_read, args=(client, waiting, updates, preview), daemon=True).start()
    left = len(job_ids)
    while left:
        try:
            job_id, event = updates.get(timeout=IDLE_S)
        except Empty:
            on_idle()
            continue
        left -= isinstance(event, Exception | Job)
        yield job_id, event


def _read(client: Client, waiting: "SimpleQueue[str]", updates: "SimpleQueue[Update]", preview: bool) -> None:
    while True:
        try:
            job_id = waiting.get_nowait()
        except Empty:
            return
        try:
            for event in client.stream_events(job_id, preview=preview):
                updates.put((job_id, event))
        # The main thread handles it.
        except Exception as error:
            updates.put((job_id, error))


def check_previews() -> None:
    """Raise `WrongUsage` if the packages that draw previews are not installed."""
    try:
        import rich_pixels  # noqa: F401
    except ModuleNotFoundError:
        raise WrongUsage("--watch needs more packages: pip install 'img2img-server[watch]'") from None


class ProgressDisplay:
    """One row for each job with its queue position, estimated time and progress. Draws only on a terminal.

    Args:
        names: Names of the inputs by the ids of their jobs.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._preview: RenderableType = ""
        self._live = Live(get_renderable=self._screen, console=console) if console.is_terminal else None
        self._crowded = len(names) > ROWS
        self._all = self._progress.add_task("all", total=len(names), state="", visible=len(names) > 1)
        self._rows: dict[str, TaskID] = {
            job_id: self._progress.add_task(printable(name), total=None, state="queued", visible=index < ROWS)
            for index, (job_id, name) in enumerate(names.items())
        }
        self._ended = 0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._preview = ""
        if self._live:
            self._live.stop()

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

    def show(self, job_id: str, event: Event | Exception) -> None:
        """Update the row of the job."""
        row = self._rows[job_id]
        if isinstance(event, Exception | Job):
            self._ended += 1
            state = event.status.value if isinstance(event, Job) else "lost"
            self._progress.update(row, total=1, completed=1, state=state, visible=not self._crowded)
            self._progress.update(self._all, completed=self._ended, state=f"{self._ended} of {len(self._rows)}")
        elif isinstance(event, QueuedEvent):
            self._progress.update(row, state=_queued(event))
        elif isinstance(event, ProgressEvent):
            step, steps = event.progress.step, event.progress.steps
            self._progress.update(row, total=steps, completed=step, state=f"step {step} of {steps}", visible=True)


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
