"""Commands that submit images, wait for their jobs and save the results."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from ..schemas.requests import Img2ImgRequest
from .errors import WrongUsage, client_errors, complain
from .fields import option_values, with_model_options
from .options import LOCAL, ApiKey, AsJson, Url, connect
from .outputs import Format, Outputs

RESULTS = "Results"
EXAMPLES = """Examples:

img2img submit photo.jpg --prompt "a pencil sketch" -o sketch.jpg

img2img submit photos --prompt "a watercolor painting" --output-dir paintings

img2img submit room.png --prompt "a tidy room" --control canny:0.8 --lora ink
"""

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="File for the result: .png, .jpg or .webp; may contain {stem}, {index}, {seed} and {id}.",
        rich_help_panel=RESULTS,
    ),
]
OutputDir = Annotated[
    Path | None,
    typer.Option(help="Folder for the results, which get the names of their inputs.", rich_help_panel=RESULTS),
]
OutputFormat = Annotated[
    Format | None,
    typer.Option("--format", help="Format of the results. Default: by --output, else png.", rich_help_panel=RESULTS),
]
Quality = Annotated[
    int | None,
    typer.Option(metavar="1-100", help="Quality of JPEG and WebP results.", rich_help_panel=RESULTS),
]
Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE...",
        help="Files, folders, patterns such as 'photos/*.jpg', `-` for stdin, or references to images that the "
        "service has.",
        show_default=False,
    ),
]


@with_model_options(Img2ImgRequest, but=frozenset({"image"}))
def submit(
    images: Images,
    output: Output = None,
    output_dir: OutputDir = None,
    format: OutputFormat = None,
    quality: Quality = None,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Skip images whose result file exists.", rich_help_panel=RESULTS),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Generate all results again. Without it, the same command for several images continues: it skips "
            "finished results and waits for jobs that it submitted before.",
            rich_help_panel=RESULTS,
        ),
    ] = False,
    no_wait: Annotated[
        bool,
        typer.Option("--no-wait", help="Print the ids of the jobs and do not wait.", rich_help_panel=RESULTS),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Show previews of the unfinished images, if stderr is a terminal.",
            rich_help_panel=RESULTS,
        ),
    ] = False,
    as_json: AsJson = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Create no job; print the job that would be created, as JSON.",
            rich_help_panel=RESULTS,
        ),
    ] = False,
    presigned_uploads: Annotated[
        bool,
        typer.Option(
            "--presigned-uploads",
            help="Send images to the bucket of the service, past the API server, if it has one.",
            rich_help_panel="Service",
        ),
    ] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            help="Makes it safe to repeat the command: the same key and request return the same job. With several "
            "images, each gets a key derived from it.",
            rich_help_panel="Job",
        ),
    ] = None,
    url: Url = LOCAL,
    api_key: ApiKey = None,
    **fields: Any,
) -> None:
    """Submit images, wait for their jobs and save the results."""
    from .inputs import find_inputs
    from .job_runner import JobRunner
    from .journal import Journal
    from .progress_display import check_previews

    with client_errors():
        if watch:
            check_previews()
        if skip_existing and overwrite:
            raise WrongUsage("--skip-existing and --overwrite exclude each other")
        inputs = find_inputs(images)
        outputs = Outputs(
            output,
            output_dir,
            [one.name for one in inputs],
            format=format,
            quality=quality,
            overwrite=overwrite,
            check=not (dry_run or no_wait),
        )
        try:
            request = option_values(Img2ImgRequest, fields)
        except OSError as error:
            raise WrongUsage(str(error)) from None
        if outputs.format == "jpeg" and request.get("background") == "transparent":
            raise WrongUsage("a JPEG cannot be transparent; choose PNG or WebP with --format or the suffix of --output")
        journal = None
        if output_dir or (outputs.is_batch and not (dry_run or no_wait)):
            journal = Journal(outputs.folder)
            outputs.keep(journal.results())
            known = {path.resolve() for path, _ in journal.results()}
            others = [one for one in inputs if Path(one.name).resolve() not in known]
            if len(others) < len(inputs) and len(inputs) > 1:
                complain(
                    f"{len(inputs) - len(others)} of the images are results of earlier commands, and are no inputs"
                )
                inputs = others
                outputs.protect([one.name for one in inputs])
        if skip_existing:
            outputs.check_predictable([one.name for one in inputs])
            count = request.get("num_images") or 1
            inputs = [one for one in inputs if not outputs.exists(one.name, count)]
        with (
            connect(url, api_key, presigned_uploads=presigned_uploads) as client,
            JobRunner(
                client,
                service=url,
                as_json=as_json,
                journal=journal,
                restart=overwrite,
                continuation=_continuation(outputs, overwrite) if journal else "",
            ) as batch,
        ):
            if dry_run:
                batch.dry_run(inputs, request)
            elif no_wait:
                batch.submit(inputs, request, outputs, idempotency_key=idempotency_key)
            else:
                batch.run(inputs, request, outputs, idempotency_key=idempotency_key, watch=watch)


def result(
    job_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID...]",
            help="Jobs. Default: all that `submit` left unfinished in --output-dir.",
            show_default=False,
        ),
    ] = None,
    output: Output = None,
    output_dir: OutputDir = None,
    format: OutputFormat = None,
    quality: Quality = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Wait for jobs that were submitted before, and save their results.

    Results get the names of their inputs if `submit` wrote or would write into the same folder, else those of the jobs.
    """
    from .job_runner import JobRunner
    from .journal import Entry, Journal

    with client_errors():
        entries = unfinished(output_dir) if not job_ids else []
        ids = job_ids or [entry.id for entry in entries]
        outputs = Outputs(output, output_dir, ids, format=format, quality=quality)
        journal = Journal(outputs.folder)
        outputs.keep(journal.results())
        entries = [journal.entry_of_job(job_id) or Entry("", job_id, id=job_id) for job_id in dict.fromkeys(ids)]
        with connect(url, api_key) as client, JobRunner(client, as_json=as_json, journal=journal) as batch:
            batch.save(entries, outputs)


def unfinished(output_dir: Path | None) -> list[Any]:
    """Return the entries of the jobs that `submit --output-dir` left unfinished.

    Raises:
        WrongUsage: There are none.
    """
    from .journal import Journal

    if output_dir is None:
        raise WrongUsage("name jobs by their ids, or the --output-dir of an earlier `img2img submit`")
    entries = Journal(output_dir).unfinished()
    if not entries:
        raise WrongUsage(f"no jobs are unfinished in {output_dir}")
    return entries


def _continuation(outputs: Outputs, overwrite: bool) -> str:
    """Return how a batch is continued after an interruption."""
    command = "the same command without --overwrite" if overwrite else "the same command"
    folder = shlex.quote(str(outputs.folder))
    return f"to continue: {command}\nto cancel: img2img cancel --output-dir {folder}"
