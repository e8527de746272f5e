"""Writes `openapi.json`, the HTTP contract as a file: `make openapi`. The output is the same on every run."""

import json
import sys
from pathlib import Path

from ..main import create_app
from ..settings import ApiSettings

FILE = Path("openapi.json")


def document() -> str:
    """Return the OpenAPI document as it is committed."""
    app = create_app(ApiSettings(_env_file=None))
    return json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(document(), "utf-8")
    sys.stdout.write(f"{FILE}\n")
