"""Write the tables of keys in docs/models.md from the classes that read a model file: `make model-keys`."""

import re
from pathlib import Path

from pydantic import BaseModel

from img2img.domain.model_config import ControlNetSource, MattingSource, ModelConfig, UpscalerSource

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
# Markers in the page, and the classes between them. `name` is the key of the table [models.NAME].
TABLES: dict[str, tuple[type[BaseModel], ...]] = {
    "model": (ModelConfig,),
    "part": (ControlNetSource, UpscalerSource, MattingSource),
}


def table(kinds: tuple[type[BaseModel], ...]) -> str:
    """Return a Markdown table with the keys of classes."""
    fields = {name: field for kind in kinds for name, field in kind.model_fields.items() if name != "name"}
    rows = "".join(f"| `{name}` | {field.description} |\n" for name, field in fields.items())
    return f"| key | value |\n|---|---|\n{rows}"


def updated(text: str) -> str:
    """Return the page with current tables."""
    for name, kinds in TABLES.items():
        begin, end = f"<!-- keys of a {name}: make model-keys -->\n", f"<!-- end of the keys of a {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        assert pattern.search(text), f"{PAGE} has no marker {begin!r}"
        content = f"{begin}\n{table(kinds)}\n{end}"
        text = pattern.sub(lambda _match, content=content: content, text)
    return text


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
