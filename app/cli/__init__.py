"""The `img2img` command. Commands import their dependencies when they run, so that `--help` is fast."""

from typing import Annotated

import typer

from . import audit, batches, forget, jobs, keys, mcp, models, submit
from . import doctor as checks
from . import serve as serving
from .help import Command

RUN, USE = "Run the service", "Use a service"

app = typer.Typer(
    epilog="Exit codes: 0 success, 1 rejected or failed, 2 wrong usage or settings, 3 unreachable, 130 interrupted.",
    no_args_is_help=True,
)


def _print_version(is_given: bool) -> None:
    if is_given:
        from img2img import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # handled by its callback
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Diffusion image-to-image behind an asynchronous HTTP API."""


app.command(rich_help_panel=RUN)(serving.serve)
app.command(rich_help_panel=RUN)(serving.api)
app.command(rich_help_panel=RUN)(serving.worker)
app.command(rich_help_panel=RUN)(serving.webhooks)
app.command(rich_help_panel=RUN)(serving.demo)
app.command(rich_help_panel=RUN)(forget.forget)
app.command(rich_help_panel=RUN)(checks.doctor)
app.add_typer(keys.app, name="keys", rich_help_panel=RUN)
app.command("audit", rich_help_panel=RUN)(audit.audit)
app.command(rich_help_panel=USE, help=f"{submit.submit.__doc__}\n\n{submit.EXAMPLES}")(submit.submit)
app.command(rich_help_panel=USE)(submit.result)
app.command(rich_help_panel=USE)(jobs.jobs)
app.command(rich_help_panel=USE)(jobs.show)
app.command(rich_help_panel=USE)(jobs.cancel)
app.command(rich_help_panel=USE)(jobs.delete)
app.command("delete-image", rich_help_panel=USE)(jobs.delete_image)
app.command(rich_help_panel=USE)(mcp.mcp)
app.add_typer(batches.app, name="batches", rich_help_panel=USE)
app.add_typer(models.app, name="models", rich_help_panel=USE)
for _group in (app, keys.app, batches.app, models.app):
    for _command in _group.registered_commands:
        _command.cls = Command


def main() -> None:
    """Run the command."""
    app()
