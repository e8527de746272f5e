"""Write docs/models.schema.json, by which editors check and complete model files: `make model-schema`."""

import json
from pathlib import Path
from typing import Any

from img2img.models_file import ModelsFile

FILE = Path(__file__).parents[1] / "docs" / "models.schema.json"


def schema() -> dict[str, Any]:
    """Return the JSON schema of a model file."""
    content = ModelsFile.model_json_schema(mode="validation")
    # The name of a model is the key of its table.
    del content["$defs"]["ModelConfig"]["properties"]["name"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **content,
        "title": "Models of img2img",
        "description": "a models.toml file",
    }


def text() -> str:
    """Return the content of the file."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
