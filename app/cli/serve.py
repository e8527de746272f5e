"""Running the service: all of it, its parts, or once for a look."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import fail, one_line_errors

if TYPE_CHECKING:
    from ..settings import ApiSettings

Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8000")]
DataDir = Annotated[Path | None, typer.Option(help="Files of Redis and of the store.", show_default="data")]
Model = Annotated[str | None, typer.Option(help="`demo`, a diffusers folder or a hub id.", show_default="demo")]
ModelsFile = Annotated[Path | None, typer.Option(help="A models.toml with the models to serve.")]
Slots = Annotated[int | None, typer.Option(min=1, help="Jobs in flight in a worker.")]
Insecure = Annotated[
    bool | None, typer.Option("--insecure", help="Let everyone in who can reach the service, without an API key.")
]
RedisUrl = Annotated[str | None, typer.Option(help="Redis of the queue.", show_default="a private one")]

DEMO_INPUT = Path(__file__).parents[2] / "examples" / "input.png"
DEMO_OUTPUT = Path("demo-output.png")
DEMO_PARAMETERS = {
    "prompt": "a watercolor painting of a red house by a lake at sunset",
    "strength": 0.45,
    "guidance_scale": 7.5,
    "seed": 1,
}


def serve(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    model: Model = None,
    models_file: ModelsFile = None,
    slots: Slots = None,
    redis_url: RedisUrl = None,
    insecure: Insecure = None,
) -> None:
    """The whole service on this machine: Redis, API server, worker and webhook dispatcher. Ctrl-C stops all of it."""
    from ..supervisor.supervisor import running

    with one_line_errors(), suppress(KeyboardInterrupt):
        settings = settings_of(
            host=host,
            port=port,
            data_dir=data_dir,
            model=model,
            models_file=models_file,
            slots=slots,
            redis_url=redis_url,
            insecure=insecure,
        )
        with running(settings) as service:
            served = settings.models_file or settings.model
            typer.echo(f"img2img serves {served} at {settings.local_url} (Ctrl-C stops it)")
            while True:
                service.tick()
                time.sleep(0.2)


def api(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    model: Model = None,
    redis_url: RedisUrl = None,
    insecure: Insecure = None,
) -> None:
    """The HTTP side alone. Workers meet it at Redis and the store."""
    import uvicorn

    from img2img.telemetry import logging as logs

    from ..http.uvicorn_protocol import HeaderTimeoutProtocol
    from ..main import create_app
    from ..supervisor.supervisor import check_keys, check_port, check_store

    with one_line_errors():
        settings = settings_of(
            host=host, port=port, data_dir=data_dir, model=model, redis_url=redis_url, insecure=insecure
        )
        check_port(settings.host, settings.port)
        check_keys(settings)
        check_store(settings)
        logs.configure("api", level=settings.log_level, form=settings.log_format)
        uvicorn.run(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            http=HeaderTimeoutProtocol,
            log_level=settings.log_level.lower(),
            log_config=None,
            access_log=False,  # ours has no raw paths: app/observability/middleware.py
            server_header=False,
            timeout_graceful_shutdown=5,
        )


def worker(
    data_dir: DataDir = None,
    model: Model = None,
    models_file: ModelsFile = None,
    slots: Slots = None,
    redis_url: RedisUrl = None,
) -> None:
    """A worker alone: takes jobs from Redis and runs them on this machine's accelerator or CPU."""
    from ..supervisor.supervisor import PYTHON, check_torch

    with one_line_errors():
        settings = settings_of(
            data_dir=data_dir, model=model, models_file=models_file, slots=slots, redis_url=redis_url
        )
        check_torch()
        os.execve(sys.executable, [*PYTHON, "img2img.worker"], settings.as_environment())  # noqa: S606


def webhooks(data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """Run a webhook dispatcher: delivers the webhooks of ended jobs from Redis."""
    from ..supervisor.supervisor import PYTHON

    with one_line_errors():
        settings = settings_of(data_dir=data_dir, redis_url=redis_url)
        os.execve(sys.executable, [*PYTHON, "img2img.app.webhooks"], settings.as_environment())  # noqa: S606


def demo(model: Model = None) -> None:
    """Starts the service, turns the example picture into a painting, and stops it again."""
    from img2img.client import Client

    from ..supervisor.supervisor import free_port, running
    from .job_runner import JobBatch
    from .outputs import Outputs

    if not DEMO_INPUT.is_file():
        fail(f"the example picture {DEMO_INPUT} is not there; run the demo in a clone of the repository")
    with one_line_errors(), TemporaryDirectory(prefix="img2img-") as data_dir:
        settings = settings_of(
            host="127.0.0.1", port=free_port(), data_dir=data_dir, model=model, redis_url="", store_url="", keys="auto"
        )
        outputs = Outputs(DEMO_OUTPUT, None, [str(DEMO_INPUT)])
        typer.echo(f"Starting the service with the model {settings.model} ...")
        with running(settings) as service, Client(settings.local_url) as client:
            started_at = time.monotonic()
            with JobBatch(client, on_idle=service.tick, say=lambda _: None) as run:
                run.send([str(DEMO_INPUT)], DEMO_PARAMETERS)
                run.save(outputs)
            seconds = time.monotonic() - started_at
    typer.echo(f"{DEMO_OUTPUT.resolve()} in {seconds:.1f} s")


def settings_of(**given: object) -> "ApiSettings":
    """Settings: what the command line gives, then IMG2IMG_* from the environment, then `.env`."""
    from ..settings import ApiSettings

    return ApiSettings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
