"""`img2img audit`: lists the audit log."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from .errors import server_errors
from .keys import connected, moment
from .options import AsJson
from .printing import add_row, echo, new_table, print_table, to_json
from .serve import Cell, DataDir, RedisUrl, settings_of_cell


def audit(
    limit: Annotated[int, typer.Option(min=1, help="The most entries to list.")] = 50,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    cell: Cell = None,
) -> None:
    """List who has administered API keys, data and models, newest first."""
    with server_errors("api"), connected(settings_of_cell(data_dir, redis_url, cell)) as redis:
        from img2img.redis.audit import audit_entries

        entries = list(audit_entries(redis, limit))
    if as_json:
        for entry in entries:
            at = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="milliseconds")
            document = {"time": at, "event": entry.event, "actor": entry.actor, "details": entry.details}
            echo(to_json(document))
        return
    table = new_table("time", "event", "actor", "details")
    for entry in entries:
        details = " ".join(f"{name}={value}" for name, value in entry.details.items())
        add_row(table, moment(entry.at), entry.event, entry.actor, details)
    print_table(table)
