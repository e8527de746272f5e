"""`img2img models`: list, show, add, remove and download models."""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from .errors import REFUSED, WrongUsage, client_errors, server_errors
from .help import Group
from .options import LOCAL, ApiKey, AsJson, Url, connect, refuse_options_of_group
from .printing import add_row, echo, new_table, print_fields, print_table, response_document, to_json

if TYPE_CHECKING:
    from img2img.client import Client, ModelDetails

GB = 1e9
POLL_S = 0.5
# Workers follow a change within this time.
FOLLOWED_S = 1.5

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model in requests.", show_default=False)]
LoraName = Annotated[str, typer.Argument(metavar="LORA", help="Name of the LoRA in requests.", show_default=False)]
Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Hub id, or a path on the disk of the workers.", show_default=False)
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once, and not when workers follow the change.")]

app = typer.Typer(cls=Group, help="List, show, add, remove and download models.")


@app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """List, show, add, remove and download models. Without a command: list them."""
    if context.invoked_subcommand is None:
        list_models(as_json, url, api_key)
    else:
        refuse_options_of_group(context)


@app.command("list")
def list_models(as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """List the models of the service, also those that are being loaded or failed."""
    with client_errors(), connect(url, api_key) as client:
        page = client.model_page()
    served = {model.name for model in page.models}
    pending = [model for model in page.pending if model.name not in served]
    if as_json:
        for model in (*page.models, *pending):
            echo(to_json(response_document(model)))
        return
    table = new_table("model", "state", "memory", "tasks", "sizes", "LoRAs", "workers", "queued")
    for model in page.models:
        document = response_document(model)
        name = f"{model.name} (default)" if model.default else model.name
        sizes = f"{model.min_size} to {model.max_size} by {model.size_multiple}"
        tasks, workers, loras = " ".join(model.tasks), len(model.workers), len(model.loras)
        memory = _size(max((worker.get("memory_bytes") or 0 for worker in document.get("statuses", ())), default=0))
        add_row(table, name, document.get("state", "loaded"), memory, tasks, sizes, loras, workers, model.queued)
    for model in pending:
        add_row(table, model.name, model.state, None, model.detail, None, None, len(model.workers), model.queued)
    print_table(table)
    for notice in page.notices:
        echo(f"img2img: {notice}", err=True)


@app.command()
def show(name: Name, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Show a model: its state on each worker, its capabilities, and how requests have changed it."""
    with client_errors(), connect(url, api_key) as client:
        model = client.get_model(name)
    document = response_document(model)
    if as_json:
        echo(to_json(document))
        return
    workers = {one.worker: f"{one.state}{f': {one.detail}' if one.detail else ''}" for one in model.workers}
    print_fields(document | {"workers": workers})


@app.command()
def add(
    name: Name,
    source: Source,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SOURCE", help="LoRA of the model; can be repeated.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another key of a model file, as text or JSON; can be repeated."
        ),
    ] = None,
    no_wait: NoWait = False,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Add a model, or replace its definition, while the service runs. Needs an API key with the scope `admin`."""
    with client_errors(), connect(url, api_key) as client:
        definition: dict[str, Any] = {"source": _source(source, url)}
        definition |= {key: _value(value) for key, value in map(_pair, set_ or ())}
        if lora:
            definition["loras"] = {key: _source(value, url) for key, value in map(_pair, lora)}
        _follow(client, client.put_model(name, definition), as_json, no_wait)


@app.command()
def remove(name: Name, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Remove a model from all workers. Its queued and running jobs are finished first."""
    with client_errors(), connect(url, api_key) as client:
        _print(client.delete_model(name), as_json)


@app.command()
def reset(name: Name, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Forget how requests have changed a model: the model files of the workers decide again."""
    with client_errors(), connect(url, api_key) as client:
        _print(client.reset_model(name), as_json)


@app.command("add-lora")
def add_lora(
    name: Name,
    lora: LoraName,
    source: Source,
    weight_name: Annotated[str | None, typer.Option(help="File name, for a source with several files.")] = None,
    no_wait: NoWait = False,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Add a LoRA to a model, or replace it, while the service runs."""
    from img2img.domain.conditioning import LORA_NAME, lora_name_of

    with client_errors(), connect(url, api_key) as client:
        component = {"source": _source(source, url)} | ({"weight_name": weight_name} if weight_name else {})
        if not re.fullmatch(LORA_NAME, lora):
            hint = f", such as {lora_name_of(lora)!r}" if lora_name_of(lora) else ""
            raise WrongUsage(f"the name of a LoRA has letters, digits, spaces and . _ - ( ) + only{hint}; got {lora!r}")
        _follow_lora(client, client.put_lora(name, lora, component), lora, as_json, no_wait)


@app.command("remove-lora")
def remove_lora(name: Name, lora: LoraName, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """Remove a LoRA from a model. Running jobs keep it."""
    with client_errors(), connect(url, api_key) as client:
        _print(client.delete_lora(name, lora), as_json)


@app.command()
def pull(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Hub id, or org/name/file.safetensors.")],
    revision: Annotated[str | None, typer.Option(help="Revision of the repository.", show_default="the latest")] = None,
    variant: Annotated[str | None, typer.Option(help="Variant of the weight files, such as fp16.")] = None,
) -> None:
    """Download a model from the hub into the cache of this machine, for workers that run here."""
    with server_errors("worker"):
        from ..supervisor.devices import PYTHON
        from ..supervisor.supervisor import check_torch

        check_torch()
        arguments = [source, revision or "", variant or ""]
        os.execv(sys.executable, [*PYTHON, "img2img.worker.pull", *arguments])  # noqa: S606


def _follow(client: "Client", model: "ModelDetails", as_json: bool, no_wait: bool) -> None:
    """Wait until a worker serves the model, and print it. Ends the command if no worker can load it."""
    shown = ""
    while not (no_wait or model.is_served or model.state == "failed"):
        if model.detail != shown and not as_json:
            shown = model.detail
            echo(f"img2img: {model.name}: {model.state}: {shown}", err=True)
        time.sleep(POLL_S)
        model = client.get_model(model.name)
    _print(model, as_json)
    if model.state == "failed":
        raise typer.Exit(REFUSED)


def _follow_lora(client: "Client", model: "ModelDetails", lora: str, as_json: bool, no_wait: bool) -> None:
    """Wait until a worker has the LoRA, and print the model. Ends the command if none can load it."""
    reason = _why_left_out(model, lora)
    if reason is not None and not no_wait:
        # Of the file before: workers notice another one within this time.
        time.sleep(FOLLOWED_S)
        model = client.get_model(model.name)
        reason = _why_left_out(model, lora)
    while not (no_wait or reason is not None or model.state == "failed" or _has_lora(model, lora)):
        time.sleep(POLL_S)
        model = client.get_model(model.name)
        reason = _why_left_out(model, lora)
    if reason is None or as_json:
        _print(model, as_json)
    else:
        echo(f"img2img: LoRA {lora} was not added to {model.name}: {reason}", err=True)
    if reason is not None or model.state == "failed":
        raise typer.Exit(REFUSED)


def _has_lora(model: "ModelDetails", lora: str) -> bool:
    # A worker that has just failed to load a LoRA is about to leave it out.
    is_settled = not any(worker.detail for worker in model.workers if worker.state == "loaded")
    return model.is_served and is_settled and model.card is not None and lora in model.card.loras


def _why_left_out(model: "ModelDetails", lora: str) -> str | None:
    """Return why a worker serves a model without a LoRA, or None."""
    for worker in model.workers:
        if lora in worker.loras_left_out:
            return worker.loras_left_out[lora]
        if worker.state == "loaded" and worker.detail and "LoRA '" not in worker.detail:
            return worker.detail
    return None


def _print(model: "ModelDetails", as_json: bool) -> None:
    echo(to_json(response_document(model)) if as_json else f"{model.name}: {model.state}: {model.detail}")


def _source(source: str, url: str) -> str:
    """Return a source; for a service on this machine, a path that exists here as an absolute path."""
    is_local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    path = Path(source).expanduser()
    is_path = source.startswith((".", "/", "~")) or path.is_file()
    return str(path.absolute()) if is_local and is_path else source


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise WrongUsage(f"expected NAME=VALUE, got {text!r}")
    return key, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _size(size: int) -> str | None:
    return f"{size / GB:.1f} GB" if size else None
