"""The `img2img` command."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.client import Client, Refused
from app.contract.job import JobStatus
from app.contract.spec import Resize, Scheduler
from app.serve import PYTHON, ServeError, check_port, check_torch, free_port, running
from app.settings import ApiSettings
from app.views import JobView

app = typer.Typer(
    help="Diffusion image-to-image behind an asynchronous HTTP API.", no_args_is_help=True, add_completion=False
)

Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8000")]
DataDir = Annotated[Path | None, typer.Option(help="Files of Redis and of the store.", show_default="data")]
Model = Annotated[str | None, typer.Option(help="`demo`, a diffusers folder or a hub id.", show_default="demo")]
ModelsFile = Annotated[Path | None, typer.Option(help="A models.toml with the models to serve.")]
Slots = Annotated[int | None, typer.Option(min=1, help="Jobs in flight in a worker.")]
RedisUrl = Annotated[str | None, typer.Option(help="Redis of the queue.", show_default="a private one")]

DEMO_INPUT = Path(__file__).parent.parent / "examples" / "input.png"
DEMO_OUTPUT = Path("demo-output.png")
DEMO_PARAMETERS = {
    "prompt": "a watercolor painting of a red house by a lake at sunset",
    "strength": 0.6,
    "guidance_scale": 7.5,
    "seed": 7,
}


def main() -> None:
    """Entry point of the command."""
    app()


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    model: Model = None,
    models_file: ModelsFile = None,
    slots: Slots = None,
    redis_url: RedisUrl = None,
) -> None:
    """The whole service on this machine: Redis, API and worker. Ctrl-C stops all of it."""
    with _one_line_errors(), suppress(KeyboardInterrupt):
        settings = _settings(
            host=host,
            port=port,
            data_dir=data_dir,
            model=model,
            models_file=models_file,
            slots=slots,
            redis_url=redis_url,
        )
        with running(settings) as service:
            typer.echo(
                f"img2img serves {settings.models_file or settings.model} at {settings.local_url} (Ctrl-C stops it)"
            )
            while True:
                service.tick()
                time.sleep(0.2)


@app.command()
def api(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    model: Model = None,
    redis_url: RedisUrl = None,
) -> None:
    """The HTTP side alone. Workers meet it at Redis and the store."""
    import uvicorn

    from app.main import create_app

    with _one_line_errors():
        settings = _settings(host=host, port=port, data_dir=data_dir, model=model, redis_url=redis_url)
        check_port(settings.host, settings.port)
        uvicorn.run(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_level=settings.log_level.lower(),
            access_log=settings.log_level in ("DEBUG", "INFO"),
            server_header=False,
            timeout_graceful_shutdown=5,
        )


@app.command()
def worker(
    data_dir: DataDir = None,
    model: Model = None,
    models_file: ModelsFile = None,
    slots: Slots = None,
    redis_url: RedisUrl = None,
) -> None:
    """A worker alone: takes jobs from Redis and runs them on this machine's accelerator or CPU."""
    with _one_line_errors():
        settings = _settings(data_dir=data_dir, model=model, models_file=models_file, slots=slots, redis_url=redis_url)
        check_torch()
        os.execve(sys.executable, [*PYTHON, "worker"], settings.as_environment())  # noqa: S606


@app.command()
def submit(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="PNG, JPEG or WebP.")],
    prompt: Annotated[str, typer.Option(help="What to show.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the PNG goes.")] = Path("out.png"),
    url: Annotated[str, typer.Option(envvar="IMG2IMG_URL", help="The service.")] = "http://127.0.0.1:8000",
    negative_prompt: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    strength: Annotated[float | None, typer.Option(help="0 keeps the picture, 1 makes a new one.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How strongly to follow the prompt; 1 is off.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option("--steps", help="Steps of the whole schedule.")] = None,
    scheduler: Annotated[Scheduler | None, typer.Option(help="The sampler.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same picture.")] = None,
    num_images: Annotated[int | None, typer.Option(help="How many variants.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the result, in pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Of the result, in pixels.")] = None,
    resize: Annotated[Resize | None, typer.Option(help="How the picture is brought to that size.")] = None,
    model: Annotated[str | None, typer.Option(help="One of the models that the service lists.")] = None,
) -> None:
    """Sends a picture, waits, and saves the result."""
    parameters = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "strength": strength,
        "guidance_scale": guidance_scale,
        "num_inference_steps": num_inference_steps,
        "scheduler": scheduler,
        "seed": seed,
        "num_images": num_images,
        "width": width,
        "height": height,
        "resize": resize,
        "model": model,
    }
    given = {name: value for name, value in parameters.items() if value is not None}
    with _one_line_errors(), Client(url) as client:
        for path in _run_job(client, image, given, output):
            typer.echo(path)


@app.command()
def demo(model: Model = None) -> None:
    """Starts the service, turns the example picture into a painting, and stops it again."""
    if not DEMO_INPUT.is_file():
        _fail(f"the example picture {DEMO_INPUT} is not there; run the demo in a clone of the repository")
    with _one_line_errors(), TemporaryDirectory(prefix="img2img-") as data_dir:
        settings = _settings(
            host="127.0.0.1", port=free_port(), data_dir=data_dir, model=model, redis_url="", store_url=""
        )
        typer.echo(f"Starting the service with the model {settings.model} ...")
        with running(settings) as service, Client(settings.local_url) as client:
            started_at = time.monotonic()
            _run_job(client, DEMO_INPUT, DEMO_PARAMETERS, DEMO_OUTPUT, on_poll=service.tick)
            seconds = time.monotonic() - started_at
    typer.echo(f"{DEMO_OUTPUT.resolve()} in {seconds:.1f} s")


def _run_job(
    client: Client,
    image: Path,
    parameters: Mapping[str, object],
    output: Path,
    on_poll: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Submits, shows the progress, saves the images. Returns where they are."""
    job = client.submit(image, parameters)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("queued", total=None)

        def show(job: JobView) -> None:
            on_poll()
            steps = job.progress
            bar.update(task, description=job.status.value, completed=steps.step, total=steps.steps or None)

        job = client.wait(job.id, show)
    if job.status is not JobStatus.SUCCEEDED:
        raise Refused(job.error.message if job.error else f"the job was {job.status}")
    paths = [output] if len(job.images) == 1 else [output.with_stem(f"{output.stem}-{i.index}") for i in job.images]
    for image_view, path in zip(job.images, paths, strict=True):
        path.write_bytes(client.image(image_view.url))
    return paths


def _settings(**given: object) -> ApiSettings:
    """Settings: what the command line gives, then IMG2IMG_* from the environment, then `.env`."""
    return ApiSettings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turns what a user can put right into one line and exit code 1; Ctrl-C is no error."""
    try:
        yield
    except ValidationError as error:
        reasons = (
            f"IMG2IMG_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}, got {e['input']!r}"
            if e["loc"]
            else e["msg"].removeprefix("Value error, ")
            for e in error.errors()
        )
        _fail("; ".join(reasons))
    except (ServeError, Refused, OSError) as error:
        _fail(str(error))


def _fail(reason: str) -> NoReturn:
    if reason:
        typer.echo(f"img2img: {reason}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    main()
