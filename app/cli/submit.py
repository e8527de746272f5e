"""Commands that submit images, wait for their jobs and save the results."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..schemas.requests import Img2ImgRequest
from .errors import client_errors
from .fields import option_values, with_model_options
from .options import LOCAL, ApiKey, AsJson, Url, connect
from .outputs import Outputs

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File for the PNG; may contain {stem}, {index}, {seed} and {id}."),
]
OutputDir = Annotated[Path | None, typer.Option(help="Folder for the PNGs, which get the names of their inputs.")]
Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE...",
        help="Files, patterns such as 'photos/*.jpg', `-` for stdin, or references to images that the service has.",
        show_default=False,
    ),
]


@with_model_options(Img2ImgRequest, but=frozenset({"image"}))
def submit(
    images: Images,
    output: Output = None,
    output_dir: OutputDir = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the ids of the jobs and do not wait.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Create no job; print the job that would be created, as JSON.")
    ] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            help="Makes it safe to repeat the command: the same key and request return the same job. With several "
            "images, each gets a key derived from it."
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show previews of the unfinished images, if stderr is a terminal.")
    ] = False,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    **fields: Any,
) -> None:
    """Submit images, wait for their jobs and save the results."""
    from .job_runner import JobBatch, expand_globs
    from .progress_display import check_previews

    with client_errors():
        if watch:
            check_previews()
        names = expand_globs(images)
        outputs = Outputs(output, output_dir, names)
        request = option_values(Img2ImgRequest, fields)
        with connect(url, api_key) as client, JobBatch(client, as_json=as_json) as batch:
            if dry_run:
                batch.dry_run(names, request)
                return
            batch.submit(names, request, idempotency_key=idempotency_key, wait=not no_wait)
            if not no_wait:
                batch.save(outputs, watch=watch)


def result(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", show_default=False)],
    output: Output = None,
    output_dir: OutputDir = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Wait for jobs that were submitted before, and save their results."""
    from .job_runner import JobBatch

    with client_errors():
        outputs = Outputs(output, output_dir, job_ids)
        with connect(url, api_key) as client, JobBatch(client, as_json=as_json) as batch:
            batch.inputs = {job_id: job_id for job_id in job_ids}
            batch.save(outputs)
