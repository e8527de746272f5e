"""Looking at the jobs and models of a service, and stopping jobs."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from img2img.domain.job import JobStatus

from .errors import REFUSED, complain, one_line_errors
from .options import LOCAL, ApiKey, AsJson, Url, connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

JobIds = Annotated[list[str], typer.Argument(metavar="ID...", show_default=False)]


def jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Lists jobs, newest first."""
    with one_line_errors(), connect(url, api_key) as client:
        found = client.jobs(status.value if status else None, limit)
        if as_json:
            for job in found:
                typer.echo(json.dumps(job))
            return
        table = _table("id", "status", "created", "model", "prompt")
        for job in found:
            request = job["request"]
            table.add_row(job["id"], _status(job), job["created_at"][:19], request["model"], request["prompt"])
        _print(table)


def show(
    job_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Shows all that is known of a job."""
    with one_line_errors(), connect(url, api_key) as client:
        job = client.job(job_id)
        if as_json:
            typer.echo(json.dumps(job))
            return
        for name, value in job.items():
            if isinstance(value, dict) and value:
                typer.echo(f"{name}:")
                for inner_name, inner in value.items():
                    typer.echo(f"  {inner_name}: {_shown(inner)}")
            elif value not in (None, [], {}):
                typer.echo(f"{name}: {_shown(value)}")


def cancel(job_ids: JobIds, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Cancels jobs; what has ended stays as it is."""
    with one_line_errors(), connect(url, api_key) as client:
        _each(job_ids, client.cancel, as_json, lambda job: f"{job['id']} {job['status']}")


def delete(job_ids: JobIds, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Deletes jobs and their pictures."""
    with one_line_errors(), connect(url, api_key) as client:

        def deleted(job_id: str) -> dict[str, Any]:
            client.delete(job_id)
            return {"id": job_id, "deleted": True}

        _each(job_ids, deleted, as_json, lambda answer: f"{answer['id']} deleted")


def models(as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Lists the models that the service has."""
    with one_line_errors(), connect(url, api_key) as client:
        found = client.models()
        if as_json:
            for model in found:
                typer.echo(json.dumps(model))
            return
        table = _table("model", "tasks", "sizes", "workers", "waiting")
        for model in found:
            name = f"{model['name']} (default)" if model["default"] else model["name"]
            sizes = f"{model['min_size']} to {model['max_size']} by {model['size_multiple']}"
            table.add_row(name, " ".join(model["tasks"]), sizes, str(len(model["workers"])), str(model["queued"]))
        _print(table)


def _each(
    job_ids: list[str],
    do: "Callable[[str], dict[str, Any]]",
    as_json: bool,
    line: "Callable[[dict[str, Any]], str]",
) -> None:
    """One job after another; a refusal stops none of those after it."""
    from img2img.client import RequestRefused

    refused = False
    for job_id in job_ids:
        try:
            answer = do(job_id)
        except RequestRefused as error:
            refused = True
            complain(f"{job_id}: {error}")
            if as_json:
                typer.echo(json.dumps({"id": job_id, "problem": error.problem}))
        else:
            typer.echo(json.dumps(answer) if as_json else line(answer))
    if refused:
        raise typer.Exit(REFUSED)


def _status(job: dict[str, Any]) -> str:
    if job["status"] == "running":
        return f"running {job['progress']['fraction']:.0%}"
    if job["status"] == "queued" and job["queue_position"] is not None:
        return f"queued, {job['queue_position']} ahead"
    return str(job["status"])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        whole = name in ("id", "model")
        table.add_column(name, no_wrap=True, overflow="ignore" if whole else "ellipsis", min_width=32 * (name == "id"))
    return table


def _print(table: "Table") -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no edge: nothing is shortened for it
    console.print(table)
