"""`img2img batches`: submit, list, show, cancel, download and delete batches of jobs on the service."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import REFUSED, WrongUsage, client_errors, complain
from .help import Group
from .options import LOCAL, ApiKey, AsJson, Url, connect, refuse_options_of_group
from .outputs import Format
from .printing import add_row, echo, new_table, print_fields, print_table, response_document, to_json

if TYPE_CHECKING:
    from img2img.client import Batch, BatchProgressEvent

BatchId = Annotated[str, typer.Argument(metavar="ID", help="Id of the batch.", show_default=False)]

app = typer.Typer(cls=Group, help="Submit, list, show, cancel, download and delete batches of jobs.")


@app.callback(invoke_without_command=True)
def batches(context: typer.Context, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Submit, list, show, cancel, download and delete batches of jobs. Without a command: list them."""
    if context.invoked_subcommand is None:
        list_batches(as_json, url, api_key)
    else:
        refuse_options_of_group(context)


@app.command("submit")
def submit(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="JSON lines, each with the fields of a request and optionally a name. Images are files, references or "
            "data: URIs. `-` is stdin.",
            show_default=False,
        ),
    ],
    webhook: Annotated[str | None, typer.Option(help="URL that is called when the last job has ended.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Makes it safe to repeat the command: the same key returns the same batch.")
    ] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Submit a job for each line of a file, as one batch. Prints the id of the batch."""
    with client_errors(), connect(url, api_key) as client:
        batch = client.batches.submit(_requests(file), webhook=webhook, idempotency_key=idempotency_key)
        echo(to_json(response_document(batch)) if as_json else batch.id)


@app.command("list")
def list_batches(as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """List the batches, newest first."""
    table = new_table("id", "status", "created", "jobs")
    with client_errors(), connect(url, api_key) as client:
        for batch in client.batches.list():
            if as_json:
                echo(to_json(response_document(batch)))
            created_at = f"{batch.created_at:%Y-%m-%dT%H:%M:%S}" if batch.created_at else ""
            add_row(table, batch.id, batch.status, created_at, _counts(batch))
    if not as_json:
        print_table(table)


@app.command("show")
def show(batch_id: BatchId, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Show all fields of a batch."""
    with client_errors(), connect(url, api_key) as client:
        _print(client.batches.get(batch_id), as_json)


@app.command("wait")
def wait(batch_id: BatchId, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Wait until every job of a batch has ended. Prints the ids of the jobs as they end."""
    from img2img.client import Job

    with client_errors(), connect(url, api_key) as client:
        last: Batch | BatchProgressEvent | Job | None = None
        for last in client.batches.stream_events(batch_id):
            if isinstance(last, Job):
                echo(to_json(response_document(last)) if as_json else f"{last.id} {last.status}")
    if last is not None and not isinstance(last, Job) and last.counts.succeeded < last.total:
        complain(_counts(last))
        raise typer.Exit(REFUSED)


@app.command("cancel")
def cancel(batch_id: BatchId, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Cancel the jobs of a batch that have not ended."""
    with client_errors(), connect(url, api_key) as client:
        batch = client.batches.cancel(batch_id)
        echo(to_json(response_document(batch)) if as_json else f"{batch.id} {_counts(batch)}")


@app.command("download")
def download(
    batch_id: BatchId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.", show_default="ID.zip")] = None,
    format: Annotated[Format | None, typer.Option("--format", help="Format of the images.", show_default="png")] = None,
    quality: Annotated[int | None, typer.Option(metavar="1-100", help="Quality of JPEG and WebP images.")] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Download the results of a batch as a zip archive."""
    with client_errors(), connect(url, api_key) as client:
        path = output or Path(f"{batch_id}.zip")
        if not path.parent.is_dir():
            raise WrongUsage(f"there is no folder {path.parent}")
        client.batches.download(batch_id, path, format=format, quality=quality)
        echo(to_json({"id": batch_id, "file": str(path)}) if as_json else str(path))


@app.command("delete")
def delete(batch_id: BatchId, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Delete a batch with its jobs, their parameters, results and inputs."""
    with client_errors(), connect(url, api_key) as client:
        client.batches.delete(batch_id)
        echo(to_json({"id": batch_id, "deleted": True}) if as_json else f"{batch_id} deleted")


def _requests(file: str) -> Iterator[Any]:
    """Yield the requests of a file. Raises WrongUsage or OSError."""
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongUsage(f"{file} is not UTF-8: {error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            request = json.loads(line)
        # A number with thousands of digits is no JSONDecodeError.
        except (ValueError, RecursionError) as error:
            raise WrongUsage(f"{file}, line {number}: {error}") from None
        if not isinstance(request, dict):
            raise WrongUsage(f"{file}, line {number}: a request is a JSON object")
        yield request


def _counts(batch: "Batch | BatchProgressEvent") -> str:
    """Return how many jobs have which status, as text."""
    counts = {name: count for name, count in batch.counts.model_dump().items() if isinstance(count, int) and count}
    return ", ".join(f"{count} {name}" for name, count in counts.items()) + f" of {batch.total}"


def _print(batch: "Batch", as_json: bool) -> None:
    document = response_document(batch)
    if as_json:
        echo(to_json(document))
    else:
        print_fields(document)
