"""Commands that run the service, one of its processes, or a demo of it."""

import logging
import os
import sys
import time
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .errors import USAGE, fail, server_errors
from .printing import echo

if TYPE_CHECKING:
    from ..settings import ApiSettings

Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8000")]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder for the files of Redis and of the blob store.", show_default="data")
]
Model = Annotated[
    str | None, typer.Option(help="`demo`, a diffusers folder or a Hugging Face Hub id.", show_default="demo")
]
ModelsFile = Annotated[Path | None, typer.Option(help="models.toml file with the models to serve.")]
Slots = Annotated[int | None, typer.Option(min=1, help="Jobs that a worker runs at once.")]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where workers run: cpu, cuda:1, cuda:all or cuda:0,cuda:1 (a worker for each).", show_default="auto"
    ),
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option(
        help="Number format of models that set none. bfloat16 is faster on most CPUs, with slightly other images.",
        show_default="that of the model",
    ),
]
Compile = Annotated[
    Literal["off", "regional", "full"] | None,
    typer.Option(
        help="Compile the denoiser: a longer first start, faster images.",
        show_default="off",
    ),
]
Insecure = Annotated[
    bool | None, typer.Option("--insecure", help="Accept requests without an API key on every address.")
]
Cell = Annotated[str | None, typer.Option(help="Cell whose Redis to use, one of IMG2IMG_CELLS.")]
RedisUrl = Annotated[str | None, typer.Option(help="URL of the Redis with the queue.", show_default="an embedded one")]

DEMO_MODEL = "demo"
DEMO_NOTE = (
    "the demo model generates small landscapes and houses only; for other images, name a model: "
    "img2img serve --model stable-diffusion-v1-5/stable-diffusion-v1-5"
)
DEMO_INPUT = "example.png"
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
    device: Device = None,
    dtype: Dtype = None,
    compile: Compile = None,
    slots: Slots = None,
    redis_url: RedisUrl = None,
    insecure: Insecure = None,
) -> None:
    """Run the whole service on this machine: Redis, API server, worker and webhook dispatcher. Ctrl-C stops it."""
    started_at = time.monotonic()
    with server_errors("serve"), suppress(KeyboardInterrupt):
        from ..supervisor.supervisor import running

        settings = settings_of(
            host=host,
            port=port,
            data_dir=data_dir,
            model=model,
            models_file=models_file,
            device=device,
            dtype=dtype,
            compile=compile,
            slots=slots,
            redis_url=redis_url,
            insecure=insecure,
        )
        if settings.cells:
            fail("IMG2IMG_CELLS is for an API server alone: run `img2img api`, and workers for each cell", USAGE)
        with running(settings, announce=lambda: _announce(settings)) as service:
            seconds = time.monotonic() - started_at
            echo(f"img2img serves {_served(settings)} at {settings.local_url} (Ctrl-C stops it)")
            page = f"page: {settings.local_url}, " if settings.playground else ""
            echo(f"img2img: ready after {seconds:.0f} s; {page}API reference: {settings.local_url}/docs", err=True)
            if settings.model == DEMO_MODEL:
                echo(f"img2img: {DEMO_NOTE}", err=True)
            while True:
                service.tick()
                time.sleep(0.2)


def _announce(settings: "ApiSettings") -> None:
    """Print where the data is, which Redis is used and what is loaded. Raises RedisUnavailable."""
    from img2img.settings import without_password

    from ..supervisor.redis_server import find_redis_server, server_version

    if settings.redis_url:
        redis = f"Redis at {without_password(settings.redis_url)}"
    else:
        server = find_redis_server()
        redis = f"{server_version(server)} ({server})"
    store = f", images in {without_password(settings.store_url)}" if settings.store_url else ""
    echo(f"img2img: data in {settings.data_dir.resolve()}{store}; {redis}", err=True)
    echo(f"img2img: starting a worker, which loads PyTorch and then {_served(settings)}", err=True)


def _served(settings: "ApiSettings") -> str:
    """Return the model file, or the model without one."""
    return str(settings.models_file or settings.model)


def api(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    model: Model = None,
    redis_url: RedisUrl = None,
    insecure: Insecure = None,
    part_of_serve: Annotated[bool, typer.Option("--part-of-serve", hidden=True)] = False,
) -> None:
    """Run only the API server. It needs Redis and the blob store; workers run elsewhere."""
    with server_errors("api"):
        import uvicorn

        from img2img.private_files import UMASK
        from img2img.telemetry import logging as logs

        from ..http.in_flight import configure_malloc
        from ..http.uvicorn_protocol import ServerProtocol
        from ..main import create_app
        from ..supervisor.supervisor import check_durability, check_keys, check_port, check_store

        settings = settings_of(
            host=host, port=port, data_dir=data_dir, model=model, redis_url=redis_url, insecure=insecure
        )
        os.umask(UMASK)
        check_port(settings.host, settings.port)
        check_keys(settings)
        for cell in settings.by_cell().values():
            check_store(cell)
            check_durability(cell)
        configure_malloc()
        logs.configure("api", level=settings.log_level, log_format=settings.log_format)
        if not part_of_serve:
            host_text = f"[{settings.host}]" if ":" in settings.host else settings.host
            logging.getLogger(logs.START_LOGGER).info("API server starts on http://%s:%d", host_text, settings.port)
        uvicorn.run(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            http=ServerProtocol,
            log_level=settings.log_level.lower(),
            log_config=None,
            # The access log of `app/telemetry` has routes instead of raw paths.
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )


def worker(
    data_dir: DataDir = None,
    model: Model = None,
    models_file: ModelsFile = None,
    device: Device = None,
    dtype: Dtype = None,
    compile: Compile = None,
    slots: Slots = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run only a worker: take jobs from Redis and run them on this machine's GPU or CPU."""
    with server_errors("api,worker"):
        from ..supervisor.devices import PYTHON
        from ..supervisor.supervisor import check_torch

        settings = settings_of(
            data_dir=data_dir,
            model=model,
            models_file=models_file,
            device=device,
            dtype=dtype,
            compile=compile,
            slots=slots,
            redis_url=redis_url,
        )
        check_torch()
        os.execve(sys.executable, [*PYTHON, "img2img.worker"], settings.as_environment())  # noqa: S606


def webhooks(data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """Run only a webhook dispatcher: deliver the webhooks of jobs that have ended."""
    with server_errors("api"):
        from ..supervisor.devices import PYTHON

        settings = settings_of(data_dir=data_dir, redis_url=redis_url)
        os.execve(sys.executable, [*PYTHON, "img2img.app.webhooks"], settings.as_environment())  # noqa: S606


def demo(model: Model = None) -> None:
    """Start the service, turn an example image into a painting, and stop the service."""
    with server_errors("serve"), TemporaryDirectory(prefix="img2img-") as data_dir:
        from img2img.client import Client

        from ..supervisor.supervisor import free_port, running
        from .inputs import Input
        from .job_runner import JobRunner
        from .outputs import Outputs

        settings = settings_of(
            host="127.0.0.1", port=free_port(), data_dir=data_dir, model=model, redis_url="", store_url="", keys="auto"
        )
        image = str(files("img2img.demo_model") / DEMO_INPUT)
        outputs = Outputs(DEMO_OUTPUT, None, [image])
        echo(f"Starting the service with the model {settings.model} ...")
        with running(settings) as service, Client(settings.local_url) as client:
            started_at = time.monotonic()
            with JobRunner(client, on_idle=service.tick, echo=lambda _: None) as batch:
                batch.run([Input(image)], DEMO_PARAMETERS, outputs)
            seconds = time.monotonic() - started_at
    echo(f"{DEMO_OUTPUT.resolve()} in {seconds:.1f} s")
    echo("Next: img2img serve, and in another terminal img2img submit IMAGE --prompt TEXT --strength 0.3")


def settings_of(**given: object) -> "ApiSettings":
    """Return the settings: options that were given, then IMG2IMG_* from the environment, then `.env`."""
    from ..settings import ApiSettings

    return ApiSettings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def settings_of_cell(data_dir: Path | None, redis_url: str | None, cell: str | None) -> "ApiSettings":
    """Return the settings of the named cell, or those of a service without cells. Ends a wrong command."""
    settings = settings_of(data_dir=data_dir, redis_url=redis_url)
    # The URL of an option is that of the cell.
    cells = {} if redis_url else settings.by_cell()
    if cell is None and ("" in cells or not cells):
        return settings
    if cell is None or cell not in cells:
        names = ", ".join(filter(None, cells))
        fail(f"name the cell by --cell, one of: {names}" if names else "IMG2IMG_CELLS has no cells", USAGE)
    return cells[cell]
