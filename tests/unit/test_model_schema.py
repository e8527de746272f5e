"""Editors accept the model files that the service accepts."""

import tomllib

import pytest
from jsonschema import Draft202012Validator

from scripts.model_schema import FILE, schema
from tests.support.pages import ROOT, blocks

VALIDATOR = Draft202012Validator(schema())


def errors(text: str) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(tomllib.loads(text))]


def test_schema_is_valid() -> None:
    Draft202012Validator.check_schema(schema())


def test_example_names_its_schema_and_follows_it() -> None:
    text = (ROOT / "examples" / "models.toml").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("#:schema ")]
    assert (ROOT / "examples" / line.removeprefix("#:schema ")).resolve() == FILE.resolve()
    assert errors(text) == []


@pytest.mark.parametrize("text", [text for text in blocks("toml") if "[models." in text])
def test_model_files_in_the_documentation_follow_the_schema(text: str) -> None:
    content = tomllib.loads(text)
    for model in content["models"].values():
        # Some show a table of a model only.
        model.setdefault("source", "./photo")
    assert [error.message for error in VALIDATOR.iter_errors(content)] == []


@pytest.mark.parametrize(
    ("line", "is_valid"),
    [
        ('vae = "./vae.safetensors"', True),
        ('vae = { source = "org/name", revision = "main" }', True),
        ("vae = { revision = 'main' }", False),
        ("vea = 'x'", False),
        ('name = "photo"', False),
        ("steps = 0", False),
        ('scheduler = "euler"', True),
        ('scheduler = "eular"', False),
        ('loras.ink = "./ink.safetensors"', True),
        ('text_encoders = ["./clip_l.safetensors", { source = "org/name", weight_name = "t5.safetensors" }]', True),
        ('upscale = { 4 = { source = "./x4", steps = 20 }, 2 = "./x2" }', True),
    ],
)
def test_keys_of_a_model(line: str, is_valid: bool) -> None:
    assert (errors(f'[models.photo]\nsource = "./photo"\n{line}\n') == []) is is_valid


def test_file_without_models_is_refused() -> None:
    assert errors("") != []
    assert errors("[model.photo]\nsource = 'x'") != []
