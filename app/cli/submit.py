"""Sending pictures, waiting for their jobs, and saving what comes out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..schemas.requests import Img2ImgRequest
from .errors import one_line_errors
from .fields import option_values, with_model_options
from .options import LOCAL, ApiKey, AsJson, Url, connect
from .outputs import Outputs

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Where the PNG goes; may contain {stem}, {index}, {seed}, {id}."),
]
OutputDir = Annotated[Path | None, typer.Option(help="A folder for the PNGs, each named like its picture.")]
Images = Annotated[
    list[str],
    typer.Argument(
        metavar="PICTURE...",
        help="Files, patterns such as 'photos/*.jpg', `-` for stdin, or references.",
        show_default=False,
    ),
]


@with_model_options(Img2ImgRequest, but=frozenset({"image"}))
def submit(
    images: Images,
    output: Output = None,
    output_dir: OutputDir = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the ids of the jobs and go.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make no job, print what it would be, as JSON.")] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="Send again safely: same key and request, same job. Of many pictures, each gets its own."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the pictures as they form, on a terminal.")] = False,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    **fields: Any,
) -> None:
    """Sends pictures, waits, and saves the results."""
    from .job_runner import JobBatch, expand_globs

    with one_line_errors():
        names = expand_globs(images)
        outputs = Outputs(output, output_dir, names)
        request = option_values(Img2ImgRequest, fields)
        with connect(url, api_key) as client, JobBatch(client, as_json=as_json) as run:
            run.send(names, request, idempotency_key=idempotency_key, dry_run=dry_run, tell=no_wait)
            if not dry_run and not no_wait:
                run.save(outputs, watch=watch)


def result(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", show_default=False)],
    output: Output = None,
    output_dir: OutputDir = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Waits for jobs that were sent before, and saves their results."""
    from .job_runner import JobBatch

    with one_line_errors():
        outputs = Outputs(output, output_dir, job_ids)
        with connect(url, api_key) as client, JobBatch(client, as_json=as_json) as run:
            run.inputs = {job_id: job_id for job_id in job_ids}
            run.save(outputs)
