"""The `img2img` command. It starts fast: what a command needs beyond its options, it imports when it runs."""

import typer

from . import jobs, keys, submit
from . import serve as serving

RUN, USE = "Run the service", "Use a service"

app = typer.Typer(
    help="Diffusion image-to-image behind an asynchronous HTTP API.",
    epilog="Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the service cannot be reached, 130 Ctrl-C.",
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
    """Entry point of the command."""
    app()
