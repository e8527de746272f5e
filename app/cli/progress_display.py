"""Many jobs followed at once, and shown as they go on."""

import threading
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from img2img.client import TERMINAL_STATUSES, Client, Json

STREAMS = 16  # event streams open at once; jobs end about in the order in which they were sent
IDLE_S = 0.2
PREVIEW_SIZE = (64, 64)  # pixels, at most: of a terminal's width and half its height
ROWS = 12  # jobs shown at once, where there are many

News = tuple[str, Json | Exception]  # a job's id and its latest event, or why there are no more


def follow_jobs(
    client: Client, job_ids: list[str], on_idle: Callable[[], None], *, preview: bool = False
) -> Iterator[News]:
    """What happens to the jobs, until each has ended or can no longer be followed. preview: pictures as well.

    The streams are read by threads that end with the process, so that Ctrl-C interrupts this at once.
    """
    news: SimpleQueue[News] = SimpleQueue()
    waiting: SimpleQueue[str] = SimpleQueue()
    for job_id in job_ids:
        waiting.put(job_id)
    for _ in range(min(STREAMS, len(job_ids))):
        threading.Thread(target=_read, args=(client, waiting, news, preview), daemon=True).start()
    left = len(job_ids)
    while left:
        try:
            job_id, event = news.get(timeout=IDLE_S)
        except Empty:
            on_idle()
            continue
        left -= isinstance(event, Exception) or event.get("status") in TERMINAL_STATUSES
        yield job_id, event


def _read(client: Client, waiting: "SimpleQueue[str]", news: "SimpleQueue[News]", preview: bool) -> None:
    while True:
        try:
            job_id = waiting.get_nowait()
        except Empty:
            return
        try:
            for _, event in client.follow(job_id, preview=preview):
                news.put((job_id, event))
        except Exception as error:  # told to the thread that waits
            news.put((job_id, error))


class ProgressDisplay:
    """One line for each job: where it stands in the queue, when it will be done, how far it is. Only on a terminal."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """names: of the jobs, by id."""
        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[says]}"), TimeElapsedColumn()
        self._progress = Progress(*columns, console=console)
        self._picture: RenderableType = ""
        self._live = Live(get_renderable=self._screen, console=console) if console.is_terminal else None
        self._crowded = len(names) > ROWS
        self._all = self._progress.add_task("all", total=len(names), says="", visible=len(names) > 1)
        self._rows: dict[str, TaskID] = {
            job_id: self._progress.add_task(name, total=None, says="queued", visible=place < ROWS)
            for place, (job_id, name) in enumerate(names.items())
        }
        self._ended = 0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._picture = ""
        if self._live:
            self._live.stop()

    @property
    def is_seen(self) -> bool:
        """Whether anybody looks at it."""
        return self._live is not None

    def _screen(self) -> RenderableType:
        return Group(self._progress, self._picture) if self._picture else self._progress

    def preview(self, event: Json) -> None:
        """Shows a picture as it forms, below the lines, two of its pixels to a character."""
        from PIL import Image
        from rich_pixels import Pixels

        with Image.open(BytesIO(b64decode(event["image"].partition(",")[2]))) as picture:
            picture.thumbnail(PREVIEW_SIZE)
            self._picture = Pixels.from_image(picture)

    def show(self, job_id: str, event: Json | Exception) -> None:
        """Brings the job's line up to date."""
        row = self._rows[job_id]
        if isinstance(event, Exception) or event["status"] in TERMINAL_STATUSES:
            self._ended += 1
            says = "lost" if isinstance(event, Exception) else event["status"]
            self._progress.update(row, total=1, completed=1, says=says, visible=not self._crowded)
            self._progress.update(self._all, completed=self._ended, says=f"{self._ended} of {len(self._rows)}")
        elif event["status"] == "queued":
            self._progress.update(row, says=_queued(event))
        else:
            steps: dict[str, Any] = event["progress"]
            says = f"step {steps['step']} of {steps['steps']}"
            self._progress.update(row, total=steps["steps"], completed=steps["step"], says=says, visible=True)


def _queued(event: Json) -> str:
    ahead, eta_s = event.get("queue_position"), event.get("eta_s")
    words = ["queued"]
    if ahead is not None:
        words.append("next" if ahead == 0 else f"{ahead} ahead")
    if eta_s is not None:
        words.append(f"done in {duration(eta_s)}")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """For people: 12 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
