"""The `img2img` command. Commands import their dependencies when they run, so that `--help` is fast."""

import typer

from . import jobs, keys, submit
from . import serve as serving

RUN, USE = "Run the service", "Use a service"

app = typer.Typer(
    help="Diffusion image-to-image behind an asynchronous HTTP API.",
    epilog="Exit codes: 0 success, 1 rejected or failed, 2 wrong usage, 3 service unreachable, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
)

app.command(rich_help_panel=RUN)(serving.serve)
app.command(rich_help_panel=RUN)(serving.api)
app.command(rich_help_panel=RUN)(serving.worker)
app.command(rich_help_panel=RUN)(serving.webhooks)
app.command(rich_help_panel=RUN)(serving.demo)
app.add_typer(keys.app, name="keys", rich_help_panel=RUN)
app.command(rich_help_panel=USE)(submit.submit)
app.command(rich_help_panel=USE)(submit.result)
app.command(rich_help_panel=USE)(jobs.jobs)
app.command(rich_help_panel=USE)(jobs.show)
app.command(rich_help_panel=USE)(jobs.cancel)
app.command(rich_help_panel=USE)(jobs.delete)
app.command(rich_help_panel=USE)(jobs.models)


def main() -> None:
    """Run the command."""
    app()
