"""Command line options generated from the fields of a request model."""

import base64
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from img2img.app.cli import submit
from img2img.app.cli.errors import WrongUsage
from img2img.app.cli.fields import option_values, with_model_options
from img2img.app.schemas.request_fields import ImageOrReference
from img2img.app.schemas.requests import Img2ImgRequest


class Kind(StrEnum):
    CANNY = "canny"
    DEPTH = "depth"


class Control(BaseModel):
    image: ImageOrReference
    kind: Kind
    weight: float = 1.0


class Request(BaseModel):
    """A field of every kind."""

    image: ImageOrReference
    mask: Annotated[ImageOrReference | None, Field(description="White is regenerated.")] = None
    controls: Annotated[list[Control], Field(description="Up to [three] of them.")] = []
    kind: Kind | None = None
    priority: Literal["low", "high"] = "low"
    webhook: str | dict[str, str] | None = None
    tiled: bool = False
    steps_count: Annotated[int | None, Field(ge=1)] = None
    pace: float | str | None = None


app = typer.Typer()
received: dict[str, Any] = {}


@app.command()
@with_model_options(Request, but=frozenset({"image"}))
def command(name: str, **fields: Any) -> None:
    received.clear()
    received.update(option_values(Request, fields))


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["x", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return received


def test_absent_options_are_not_sent() -> None:
    assert run() == {}


def test_values_have_the_types_of_their_fields() -> None:
    options = "--kind depth --priority high --tiled --steps-count 3 --pace 24h"
    sent = {"kind": "depth", "priority": "high", "tiled": True, "steps_count": 3, "pace": "24h"}
    assert run(*options.split()) == sent


def test_image_option_takes_a_file_or_a_reference(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"pixels")
    assert run("--mask", str(tmp_path / "mask.png")) == {"mask": b"pixels"}
    assert run("--mask", "0" * 64) == {"mask": "0" * 64}
    with pytest.raises(FileNotFoundError):
        run("--mask", "nothing.png")


def test_structured_option_takes_json_with_images_from_files(tmp_path: Path) -> None:
    (tmp_path / "pose.png").write_bytes(b"pixels")
    controls = [{"image": f"@{tmp_path}/pose.png", "kind": "canny", "weight": 0.5}]
    sent = {"controls": [{**controls[0], "image": b"pixels"}]}
    assert run("--controls", json.dumps(controls)) == sent
    (tmp_path / "controls.json").write_text(json.dumps(controls))
    assert run("--controls", f"@{tmp_path}/controls.json") == sent
    in_base64 = [{"image": base64.b64encode(b"pixels").decode(), "kind": "canny"}]
    sent_in_base64 = {"controls": [{"image": "data:;base64,cGl4ZWxz", "kind": "canny"}]}
    assert run("--controls", json.dumps(in_base64)) == sent_in_base64
    assert run("--webhook", '{"url": "@not-a-file"}') == {"webhook": {"url": "@not-a-file"}}
    assert run("--webhook", "https://example.com") == {"webhook": "https://example.com"}
    with pytest.raises(WrongUsage, match="--controls takes JSON or @file"):
        run("--controls", "[{]")


@pytest.mark.parametrize(
    ("field", "entries", "image"),
    [
        ("controls", [{"type": "canny", "image": "@pose.png"}], "image"),
        ("image_prompts", [{"image": "@pose.png", "blocks": {"up": {"block_0": [0, 1, 0]}}}], "image"),
        ("regions", [{"mask": "@pose.png", "prompt": "a house"}], "mask"),
        ("loras", [{"name": "ink", "scale": 0.5}], None),
        ("refine", [{"detect": "face"}], None),
        ("freeu", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}, None),
        ("outpaint", {"left": 8}, None),
        ("background", {"prompt": "a beach"}, None),
    ],
)
def test_structured_fields_of_a_job_take_json(
    field: str, entries: Any, image: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pose.png").write_bytes(b"pixels")
    values = option_values(Img2ImgRequest, {field: json.dumps(entries)})
    assert values == {field: [{**entries[0], image: b"pixels"}] if image else entries}


def test_help_shows_the_description_of_the_field() -> None:
    text = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    assert "White is regenerated. A file, or a reference" in text
    assert "Up to [three] of them. JSON, or @file" in text
    assert "--kind canny|depth" in text
    assert "--priority low|high" in text


def test_submit_has_an_option_for_every_field() -> None:
    assert Img2ImgRequest.model_fields.keys() - {"image"} <= submit.submit.__annotations__.keys()


@pytest.mark.parametrize(
    ("text", "value"), [("transparent", "transparent"), ('{"prompt": "a beach"}', {"prompt": "a beach"})]
)
def test_background_is_a_word_or_json(text: str, value: Any) -> None:
    assert option_values(Img2ImgRequest, {"background": text}) == {"background": value}
    with pytest.raises(WrongUsage, match="--background takes JSON"):
        option_values(Img2ImgRequest, {"background": "opaque"})


def test_short_forms_are_the_same_as_json(tmp_path: Path) -> None:
    (tmp_path / "edges.png").write_bytes(b"edges")
    (tmp_path / "style.png").write_bytes(b"style")
    given = {
        "control": ["canny:0.8", f"depth={tmp_path}/edges.png", f"scribble:.5={tmp_path}/edges.png"],
        "lora": ["ink:0.8", "a:b", "old"],
        "image_prompt": [f"{tmp_path}/style.png:0.5", f"{tmp_path}/style.png"],
        "outpaint": "64,0,32,1",
        "num_inference_steps_alias": 7,
    }
    assert option_values(Img2ImgRequest, given) == {
        "controls": [
            {"type": "canny", "scale": 0.8},
            {"type": "depth", "image": b"edges"},
            {"type": "scribble", "scale": 0.5, "image": b"edges"},
        ],
        "loras": [{"name": "ink", "scale": 0.8}, {"name": "a:b"}, {"name": "old"}],
        "image_prompts": [{"image": b"style", "scale": 0.5}, {"image": b"style"}],
        "outpaint": {"left": 64, "top": 0, "right": 32, "bottom": 1},
        "num_inference_steps": 7,
    }


def test_mask_options_are_a_mask_that_the_model_finds() -> None:
    assert run("--mask-text", "the house", "--mask-grow", "8") == {"mask": {"text": "the house", "grow": 8}}
    points = {"points": [[120, 80.5], [3, 4]], "labels": [1, 0]}
    assert run("--mask-point", "120,80.5", "--mask-point=-3,4") == {"mask": points}
    assert run("--mask-box", "0,1,20,30") == {"mask": {"box": [0, 1, 20, 30]}}
    assert option_values(Img2ImgRequest, {"mask": '{"text": "x"}'}) == {"mask": {"text": "x"}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": "0" * 64, "mask_text": "x"}, "--mask and the options that find a mask exclude each other"),
        ({"mask_point": ["3"]}, "--mask-point takes X,Y or -X,Y in pixels"),
        ({"mask_box": "1,2,3"}, "--mask-box takes LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ({"control": [""]}, r"--control takes TYPE\[:SCALE\]\[=FILE\], got ''"),
        ({"control": ["canny="]}, r"--control takes .*, got 'canny='"),
        ({"lora": [":0.5"]}, r"--lora takes NAME\[:SCALE\], got ':0.5'"),
        ({"lora": ["ink"], "loras": "[]"}, "--lora and --loras exclude each other"),
        ({"loras": "ink:0.8"}, r"--loras takes JSON or @file: .*; the short form is --lora NAME\[:SCALE\]"),
        ({"num_inference_steps": 1, "num_inference_steps_alias": 2}, "exclude each other"),
        ({"outpaint": "64,0"}, "--outpaint takes JSON or @file"),
    ],
)
def test_wrong_short_forms_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongUsage, match=message):
        option_values(Img2ImgRequest, given)
