"""Commands that list, show, cancel and delete jobs, and list models."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from img2img.domain.job import JobStatus

from .errors import REFUSED, client_errors, complain
from .options import LOCAL, ApiKey, AsJson, Url, connect
from .printing import new_table, print_table, problem_document, response_document

if TYPE_CHECKING:
    from collections.abc import Callable

    from img2img.client import Job

JobIds = Annotated[list[str], typer.Argument(metavar="ID...", show_default=False)]


def jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs with this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most jobs to list.")] = 20,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """List jobs, newest first."""
    with client_errors(), connect(url, api_key) as client:
        found = client.list_jobs(status=status.value if status else None, limit=limit)
        if as_json:
            for job in found:
                typer.echo(json.dumps(response_document(job)))
            return
        table = new_table("id", "status", "created", "model", "prompt")
        for job in found:
            created_at = f"{job.created_at:%Y-%m-%dT%H:%M:%S}" if job.created_at else ""
            table.add_row(job.id, _status(job), created_at, job.request.get("model"), job.request.get("prompt"))
        print_table(table)


def show(
    job_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Show all fields of a job."""
    with client_errors(), connect(url, api_key) as client:
        job = response_document(client.get_job(job_id))
        if as_json:
            typer.echo(json.dumps(job))
            return
        for name, value in job.items():
            if isinstance(value, dict) and value:
                typer.echo(f"{name}:")
                for inner_name, inner in value.items():
                    typer.echo(f"  {inner_name}: {_text(inner)}")
            elif value not in (None, [], {}):
                typer.echo(f"{name}: {_text(value)}")


def cancel(job_ids: JobIds, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Cancel jobs. Jobs that have ended stay as they are."""
    with client_errors(), connect(url, api_key) as client:
        _for_each(
            job_ids,
            lambda job_id: response_document(client.cancel(job_id)),
            as_json,
            lambda job: f"{job['id']} {job['status']}",
        )


def delete(job_ids: JobIds, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Delete jobs and their images."""
    with client_errors(), connect(url, api_key) as client:

        def deleted(job_id: str) -> dict[str, Any]:
            client.delete(job_id)
            return {"id": job_id, "deleted": True}

        _for_each(job_ids, deleted, as_json, lambda answer: f"{answer['id']} deleted")


def models(as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """List the models that the service has."""
    with client_errors(), connect(url, api_key) as client:
        found = client.list_models()
        if as_json:
            for model in found:
                typer.echo(json.dumps(response_document(model)))
            return
        table = new_table("model", "tasks", "sizes", "workers", "queued")
        for model in found:
            name = f"{model.name} (default)" if model.default else model.name
            sizes = f"{model.min_size} to {model.max_size} by {model.size_multiple}"
            table.add_row(name, " ".join(model.tasks), sizes, str(len(model.workers)), str(model.queued))
        print_table(table)


def _for_each(
    job_ids: list[str],
    call: "Callable[[str], dict[str, Any]]",
    as_json: bool,
    text: "Callable[[dict[str, Any]], str]",
) -> None:
    """Call `call` for each job; an error stops none of the later ones."""
    from img2img.client import ClientError, ServiceUnreachable

    failed = False
    for job_id in job_ids:
        try:
            answer = call(job_id)
        except ServiceUnreachable:
            raise
        except ClientError as error:
            failed = True
            complain(f"{job_id}: {error}")
            if as_json:
                typer.echo(json.dumps({"id": job_id, **problem_document(error)}))
        else:
            typer.echo(json.dumps(answer) if as_json else text(answer))
    if failed:
        raise typer.Exit(REFUSED)


def _status(job: "Job") -> str:
    if job.status is JobStatus.RUNNING:
        return f"running {job.progress.fraction:.0%}"
    if job.status is JobStatus.QUEUED and job.queue_position is not None:
        return f"queued, {job.queue_position} ahead"
    return job.status.value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
