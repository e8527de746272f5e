"""Commands that list, show, cancel and delete jobs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from img2img.domain.job import JobStatus

from .errors import REFUSED, WrongUsage, client_errors, complain
from .options import LOCAL, ApiKey, AsJson, Url, connect
from .png_parameters import print_parameters
from .printing import add_row, echo, new_table, print_fields, print_table, problem_document, response_document, to_json
from .submit import unfinished

if TYPE_CHECKING:
    from collections.abc import Callable

    from img2img.client import Job

# Requests that are sent at once.
REQUESTS = 16

JobIds = Annotated[list[str], typer.Argument(metavar="ID...", show_default=False)]


def jobs(
    status: Annotated[
        JobStatus | None,
        typer.Option(metavar="STATUS", help=f"Only jobs with this status: {', '.join(JobStatus)}."),
    ] = None,
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
                echo(to_json(response_document(job)))
            return
        table = new_table("id", "status", "created", "model", "prompt")
        for job in found:
            created_at = f"{job.created_at:%Y-%m-%dT%H:%M:%S}" if job.created_at else ""
            add_row(table, job.id, _status(job), created_at, job.request.get("model"), job.request.get("prompt"))
        print_table(table)


def show(
    job_id: Annotated[str, typer.Argument(metavar="ID|FILE", show_default=False)],
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Show all fields of a job, or the parameters that a result holds as a file."""
    if Path(job_id).is_file():
        with client_errors():
            print_parameters(Path(job_id), as_json=as_json)
        return
    with client_errors(), connect(url, api_key) as client:
        job = response_document(client.get_job(job_id))
        if as_json:
            echo(to_json(job))
            return
        print_fields(job)


def cancel(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", show_default=False)] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Cancel all jobs that `submit` with this option left unfinished.")
    ] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Cancel jobs. Jobs that have ended stay as they are."""
    with client_errors(), connect(url, api_key) as client:
        if job_ids and output_dir:
            raise WrongUsage("ids and --output-dir exclude each other")
        _for_each(
            job_ids or [entry.id for entry in unfinished(output_dir)],
            lambda job_id: response_document(client.cancel(job_id)),
            as_json,
            lambda job: f"{job['id']} {job['status']}",
        )


def delete(job_ids: JobIds, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Delete jobs with their parameters, results and inputs. Jobs that have not ended are cancelled."""
    with client_errors(), connect(url, api_key) as client:

        def deleted(job_id: str) -> dict[str, Any]:
            client.delete(job_id)
            return {"id": job_id, "deleted": True}

        _for_each(job_ids, deleted, as_json, lambda answer: f"{answer['id']} deleted")


def delete_image(
    digests: Annotated[list[str], typer.Argument(metavar="SHA256...", show_default=False)],
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Delete images that were uploaded with `POST /images`. Jobs have their own copies."""
    with client_errors(), connect(url, api_key) as client:

        def deleted(digest: str) -> dict[str, Any]:
            client.delete_image(digest)
            return {"sha256": digest, "deleted": True}

        _for_each(digests, deleted, as_json, lambda answer: f"{answer['sha256']} deleted", name="sha256")


def _for_each(
    ids: list[str],
    call: "Callable[[str], dict[str, Any]]",
    as_json: bool,
    text: "Callable[[dict[str, Any]], str]",
    name: str = "id",
) -> None:
    """Call `call` for each job or image, several at once; an error stops none of the others.

    Args:
        name: Name of the id in JSON.
    """
    from img2img.client import ClientError, ServiceUnreachable

    failed = False
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = [(one, pool.submit(call, one)) for one in ids]
        for one, answer in answers:
            try:
                document = answer.result()
            except ServiceUnreachable:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            except ClientError as error:
                failed = True
                complain(f"{one}: {error}")
                if as_json:
                    echo(to_json({name: one, **problem_document(error)}))
            else:
                echo(to_json(document) if as_json else text(document))
    if failed:
        raise typer.Exit(REFUSED)


def _status(job: "Job") -> str:
    if job.status is JobStatus.RUNNING:
        return f"running {job.progress.fraction:.0%}"
    if job.status is JobStatus.QUEUED and job.queue_position is not None:
        return f"queued, {job.queue_position} ahead"
    return job.status.value
