"""Hashes of inputs in specs."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from img2img.domain.blob_keys import input_key, upload_key
from img2img.domain.parameters import Task
from img2img.domain.presigned_upload import PresignedUpload
from img2img.domain.spec import Img2ImgSpec, dump_spec, parse_spec
from tests.support.specs import CLASSES, make_spec

SHA256 = "^[0-9a-f]{64}$"
IMAGE, MASK, CONTROL, PROMPT, REFERENCE, PART = (f"{number:064x}" for number in range(1, 7))
REGION = {"mask": MASK, "blur": 4, "margins": {"left": 8}, "canvas": (40, 32), "box": (0, 0, 40, 32)}
CONTROLS = [{"type": "canny", "image": CONTROL, "preprocess": True}]
PROMPTS = [{"image": PROMPT, "scale": 0.5}]
TILING = {"upscaler": False, "side": 64, "overlap": 8, "multiple": 8}
INPUTS: dict[Task, list[str]] = {
    Task.IMG2IMG: [IMAGE, CONTROL, PROMPT, PART],
    Task.INPAINT: [IMAGE, MASK, CONTROL, PROMPT],
    Task.CONTROL: [CONTROL, PROMPT],
    Task.EDIT: [IMAGE, REFERENCE, PROMPT],
    Task.UPSCALE: [IMAGE, PROMPT],
    Task.CONTROL_MAP: [IMAGE],
    Task.MASK: [IMAGE],
}


@pytest.mark.parametrize("task", Task)
def test_stored_spec_has_no_default_values(task: Task) -> None:
    spec = make_spec(task, type="canny", controls=CONTROLS, region=REGION, tiling=TILING, upscale=2)
    stored = json.loads(dump_spec(spec))
    assert parse_spec(dump_spec(spec)) == (spec, ())
    assert stored["task"] == task
    assert not {"negative_prompt", "num_images", "loras", "resize"} & stored.keys()


@pytest.mark.parametrize("task", Task)
def test_defaults_of_stored_specs_stay(task: Task) -> None:
    """A stored spec would mean another image. For another default, add a field."""
    defaults = json.loads((Path(__file__).parent / "stored_defaults.json").read_text())[task]
    fields = CLASSES[task].model_fields
    adapter = {name: TypeAdapter(Any).dump_python(fields[name].get_default(), mode="json") for name in defaults}
    assert adapter == defaults
    added = {name for name, field in fields.items() if not field.is_required()} - defaults.keys()
    assert not added, "add the default of the new field to stored_defaults.json"


@pytest.mark.parametrize("task", Task)
def test_unknown_fields_of_a_later_version_are_named(task: Task) -> None:
    spec = make_spec(task, type="canny", controls=CONTROLS, region=REGION, tiling=TILING, upscale=2)
    stored = json.loads(dump_spec(spec)) | {"new": 1}
    names = ["new"]
    for name in ("region", "tiling"):
        if name in stored:
            stored[name]["new"] = {"a": 1}
            names.append(f"{name}.new")
    if "controls" in stored:
        stored["controls"][0]["new"] = True
        names.append("controls.0.new")
    found, unknown = parse_spec(json.dumps(stored))
    assert found == spec
    assert sorted(unknown) == sorted(names)


@pytest.mark.parametrize("change", [{"num_inference_steps": 0}, {"scheduler": "of-the-future"}, {"task": "video"}])
def test_unknown_values_are_refused(change: dict[str, Any]) -> None:
    stored = json.loads(dump_spec(make_spec())) | change | {"new": 1}
    with pytest.raises(ValueError, match="validation error"):
        parse_spec(json.dumps(stored))


@pytest.mark.parametrize("task", Task)
def test_without_inputs_leaves_out_every_hash(task: Task) -> None:
    fields: dict[str, Any] = {"region": REGION, "controls": CONTROLS, "image_prompts": PROMPTS, "tiling": TILING}
    fields["references"] = [{"image": REFERENCE, "width": 8, "height": 8}]
    fields["regions"] = [{"mask": PART, "prompt": "a house", "weight": 0.5}]
    spec, digests = make_spec(task, image=IMAGE, upscale=2, type="canny", **fields), INPUTS[task]
    schema = json.dumps(CLASSES[task].model_json_schema())
    assert schema.count(json.dumps(SHA256)) == len(digests), "a new field with a hash?"
    assert spec.inputs == tuple(digests)
    without = spec.without_inputs()
    assert without.inputs == ()
    assert not [digest for digest in digests if digest in without.model_dump_json()]
    assert parse_spec(dump_spec(without)) == (without, ())
    excluded = {"image", "region", "controls", "image_prompts", "references", "regions"}
    assert without.model_dump(exclude=excluded) == spec.model_dump(exclude=excluded)
    if "controls" in type(spec).model_fields:
        assert without.controls[0].preprocess
    if "image_prompts" in type(spec).model_fields:
        assert without.image_prompts[0].scale == 0.5
    assert spec.inputs == tuple(digests), "the original spec is unchanged"


def test_cost_counts_the_calls_that_speed_is_expected_to_make() -> None:
    exact, fast, turbo = (make_spec(num_inference_steps=30, speed=speed).cost for speed in ("exact", "fast", "turbo"))
    assert exact > 1.7 * fast > 1.7 * turbo
    few = [make_spec(num_inference_steps=3, speed=speed).cost for speed in ("exact", "turbo")]
    assert few[0] == few[1], "the first calls and the last one are always made"


def test_upload_of_a_client_is_an_input_with_another_key() -> None:
    upload = PresignedUpload.new(IMAGE, 9, (64, 64), now=1e9)
    spec = make_spec(image=IMAGE, upload=upload.id, image_prompts=PROMPTS)
    assert isinstance(spec, Img2ImgSpec)
    assert spec.inputs[0] == IMAGE
    others = [digest for digest in spec.inputs if digest != IMAGE]
    assert spec.input_keys == (upload_key(upload.id), *map(input_key, others))
    assert IMAGE not in spec.without_inputs().model_dump_json()
    assert spec.without_inputs().input_keys == ()
    assert parse_spec(dump_spec(spec)) == (spec, ())
    assert "upload" not in dump_spec(make_spec()), "an earlier version can read it"
