"""Hashes of inputs in specs."""

import json
from typing import Any

import pytest

from img2img.domain.parameters import Task
from img2img.domain.spec import parse_spec
from tests.support.specs import CLASSES, make_spec

SHA256 = "^[0-9a-f]{64}$"
IMAGE, MASK, CONTROL, PROMPT, REFERENCE = (f"{number:064x}" for number in range(1, 6))
REGION = {"mask": MASK, "blur": 4, "margins": {"left": 8}, "canvas": (40, 32), "box": (0, 0, 40, 32)}
CONTROLS = [{"type": "canny", "image": CONTROL, "preprocess": True}]
PROMPTS = [{"image": PROMPT, "scale": 0.5}]
TILING = {"upscaler": False, "side": 64, "overlap": 8, "multiple": 8}
INPUTS: dict[Task, list[str]] = {
    Task.IMG2IMG: [IMAGE, CONTROL, PROMPT],
    Task.INPAINT: [IMAGE, MASK, CONTROL, PROMPT],
    Task.CONTROL: [CONTROL, PROMPT],
    Task.EDIT: [IMAGE, REFERENCE, PROMPT],
    Task.UPSCALE: [IMAGE, PROMPT],
    Task.CONTROL_MAP: [IMAGE],
}


@pytest.mark.parametrize("task", Task)
def test_without_inputs_leaves_out_every_hash(task: Task) -> None:
    fields: dict[str, Any] = {"region": REGION, "controls": CONTROLS, "image_prompts": PROMPTS, "tiling": TILING}
    fields["references"] = [{"image": REFERENCE, "width": 8, "height": 8}]
    spec, digests = make_spec(task, image=IMAGE, upscale=2, type="canny", **fields), INPUTS[task]
    schema = json.dumps(CLASSES[task].model_json_schema())
    assert schema.count(json.dumps(SHA256)) == len(digests), "a new field with a hash?"
    assert spec.inputs == tuple(digests)
    without = spec.without_inputs()
    assert without.inputs == ()
    assert not [digest for digest in digests if digest in without.model_dump_json()]
    assert parse_spec(without.model_dump_json()) == without
    excluded = {"image", "region", "controls", "image_prompts", "references"}
    assert without.model_dump(exclude=excluded) == spec.model_dump(exclude=excluded)
    if "controls" in type(spec).model_fields:
        assert without.controls[0].preprocess
    if "image_prompts" in type(spec).model_fields:
        assert without.image_prompts[0].scale == 0.5
    assert spec.inputs == tuple(digests), "the original spec is unchanged"
