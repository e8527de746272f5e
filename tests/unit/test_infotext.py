"""The text of the web UI's parameters, as other software reads it from results."""

from pathlib import Path

import numpy as np
import pytest
import sd_parsers

from img2img.domain.conditioning import InpaintRegion, Lora
from img2img.domain.infotext import infotext, parse_infotext
from img2img.domain.parameters import Task
from img2img.domain.spec import GenerationSpec
from img2img.worker.images.png import encode_png
from tests.support.specs import CLASSES, make_spec


def test_parameters_are_listed() -> None:
    spec = make_spec(negative_prompt="rain", strength=0.5, scheduler="dpmpp_2m_karras", clip_skip=1, model="a,b")
    text = infotext(spec, 7)
    assert text.startswith("a red house\nNegative prompt: rain\nSteps: 10, Sampler: DPM++ 2M, Schedule type: Karras,")
    assert parse_infotext(text) == {
        "Prompt": "a red house",
        "Negative prompt": "rain",
        "Steps": "10",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "5",
        "Seed": "7",
        "Size": "32x32",
        "Model": "a,b",
        "Denoising strength": "0.5",
        "Clip skip": "2",
    }


@pytest.mark.parametrize("task", [task for task in Task if issubclass(CLASSES[task], GenerationSpec)])
def test_every_task_that_generates_has_it(task: Task) -> None:
    region = InpaintRegion(mask="0" * 64, blur=4, canvas=(32, 32), box=(0, 0, 32, 32))
    tiling = {"upscaler": False, "side": 32, "overlap": 8, "multiple": 8}
    controls = [{"type": "canny", "image": None, "preprocess": True}]
    spec = make_spec(task, region=region, tiling=tiling, upscale=2, controls=controls)
    fields = parse_infotext(infotext(spec, 1))
    assert ("Denoising strength" in fields) == hasattr(spec, "strength")
    assert fields["Size"] == ("64x64" if task is Task.UPSCALE else "32x32")


@pytest.mark.parametrize(
    ("prompt", "weighted", "expected"),
    [
        ("a (35mm) photo", False, r"a \(35mm\) photo"),
        ("a (red:1.3) photo", False, r"a \(red:1.3\) photo"),
        ("a (red:1.3) photo (35mm)", True, r"a (red:1.3) photo \(35mm\)"),
        (r"[a] \ b", False, r"\[a\] \\ b"),
        (r"a \(b\) ([c]:2)", True, r"a \(b\) (\[c\]:2)"),
    ],
)
def test_prompt_is_in_the_language_of_the_web_ui(prompt: str, weighted: bool, expected: str) -> None:
    assert infotext(make_spec(prompt=prompt, prompt_weighting=weighted), 1).split("\n")[0] == expected


def test_loras_are_tags() -> None:
    spec = make_spec(loras=(Lora(name="ink", scale=0.8), Lora(name="line")))
    assert infotext(spec, 1).split("\n")[0] == "a red house <lora:ink:0.8> <lora:line:1>"


@pytest.mark.parametrize(
    ("scheduler", "sigmas", "names"),
    [
        ("euler", None, ("Euler", "Automatic")),
        ("dpmpp_2m", None, ("DPM++ 2M", "Uniform")),
        ("dpmpp_sde", "karras", ("DPM++ SDE", "Karras")),
        ("deis", "beta", ("deis", "Beta")),
        ("flow_euler_beta", None, ("flow_euler", "Beta")),
    ],
)
def test_sampler_and_schedule(scheduler: str, sigmas: str | None, names: tuple[str, str]) -> None:
    fields = parse_infotext(infotext(make_spec(scheduler=scheduler, sigmas=sigmas), 1))
    assert (fields["Sampler"], fields["Schedule type"]) == names


@pytest.mark.parametrize(
    "text", ["", "a house", "a house, Steps: many", 'x\nSteps: 1, Sampler: "', "Steps: 1, A b: 2, C d: 3"]
)
def test_any_text_is_parsed(text: str) -> None:
    assert "Prompt" in parse_infotext(text)


def test_other_software_reads_the_parameters_of_a_result(tmp_path: Path) -> None:
    file, pixels = tmp_path / "result.png", np.zeros((8, 8, 3), np.uint8)
    spec = make_spec(negative_prompt="rain", scheduler="dpmpp_sde", sigmas="karras", strength=0.5)
    file.write_bytes(encode_png(pixels, {"seed": 7}, infotext(spec, 7)))
    info = sd_parsers.ParserManager().parse(file)
    assert info is not None
    assert info.generator.value == "AUTOMATIC1111"
    assert ([prompt.value for prompt in info.prompts], info.metadata["Denoising strength"]) == (["a red house"], "0.5")
    [sampler] = info.samplers
    assert sampler.name == "DPM++ SDE"
    assert sampler.parameters == {"scheduler": "Karras", "cfg_scale": "5", "seed": "7", "steps": "10"}
    # Without metadata, there is nothing to read.
    file.write_bytes(encode_png(pixels, None))
    assert sd_parsers.ParserManager().parse(file) is None
    assert b"tEXt" not in file.read_bytes()
