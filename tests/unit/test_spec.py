"""What a spec says of its inputs."""

import json

from img2img.domain.spec import JobSpec
from tests.support.specs import make_spec

SHA256 = "^[0-9a-f]{64}$"


def full_spec(digests: list[str]) -> JobSpec:
    """A spec with an input in every field that can hold one."""
    image, mask, control, prompt = digests
    repaint = {"mask": mask, "blur": 4, "margins": {"left": 8}, "canvas": (40, 32), "box": (0, 0, 40, 32)}
    return make_spec(
        image=image,
        repaint=repaint,
        controls=[{"type": "canny", "image": control, "preprocess": True}],
        image_prompts=[{"image": prompt, "scale": 0.5}],
    )


def test_every_input_can_be_left_out() -> None:
    digests = [f"{number:064x}" for number in range(1, 5)]
    spec = full_spec(digests)
    assert json.dumps(JobSpec.model_json_schema()).count(json.dumps(SHA256)) == len(digests), "a new field with a hash?"
    assert spec.inputs == tuple(digests)
    without = spec.without_inputs()
    assert without.inputs == ()
    assert not [digest for digest in digests if digest in without.model_dump_json()]
    assert JobSpec.model_validate_json(without.model_dump_json()) == without
    left = {"image", "repaint", "controls", "image_prompts"}
    assert without.model_dump(exclude=left) == spec.model_dump(exclude=left)
    assert without.controls[0].preprocess
    assert without.image_prompts[0].scale == 0.5
    assert spec.inputs == tuple(digests), "the spec itself stays as it was"
