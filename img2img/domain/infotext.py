"""The text in which the AUTOMATIC1111 web UI writes the parameters of an image, and the web UI's names of samplers.

Other software for images reads it from the PNG chunk `parameters`.
"""

import json
import re

from img2img.domain.parameters import Scheduler
from img2img.domain.spec import EditSpec, GenerationSpec, InpaintSpec, StrengthSpec

# Name of the sampler and its schedule type. Schedulers of the web UI that are not here have the names of diffusers.
WEB_UI_NAMES: dict[Scheduler, tuple[str, str]] = {
    Scheduler.DDIM: ("DDIM", "Automatic"),
    Scheduler.PNDM: ("PLMS", "Automatic"),
    Scheduler.LMS: ("LMS", "Automatic"),
    Scheduler.EULER: ("Euler", "Automatic"),
    Scheduler.EULER_A: ("Euler a", "Automatic"),
    Scheduler.HEUN: ("Heun", "Automatic"),
    Scheduler.DPMPP_2M: ("DPM++ 2M", "Uniform"),
    Scheduler.DPMPP_2M_KARRAS: ("DPM++ 2M", "Karras"),
    Scheduler.DPMPP_2M_SDE: ("DPM++ 2M SDE", "Uniform"),
    Scheduler.UNIPC: ("UniPC", "Automatic"),
    Scheduler.LCM: ("LCM", "Automatic"),
}
# A name and a value on the last line. A value with a comma or colon is a JSON string.
FIELD = re.compile(r'\s*(\w[\w \-/]{1,60}):\s*("(?:\\[\\"/bfnrt]|\\u[0-9a-fA-F]{4}|[^\\"\x00-\x1f])*"|[^",]*)(?:,|$)')
# A last line with fewer fields is part of the prompt, as in the web UI.
MIN_FIELDS = 3
# Longer lines would take long to parse.
MAX_LINE = 5000
WEIGHTED = re.compile(r"\(([^()]+):([0-9]+(?:\.[0-9]+)?)\)|[()\[\]\\]")


def infotext(spec: GenerationSpec, seed: int) -> str:
    """Return the parameters of one image as the web UI writes them."""
    width, height = spec.result_size
    sampler, schedule = WEB_UI_NAMES.get(spec.scheduler, (spec.scheduler.value, "Automatic"))
    fields: dict[str, object] = {
        "Steps": spec.num_inference_steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{spec.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model": spec.model,
    }
    if isinstance(spec, StrengthSpec):
        fields["Denoising strength"] = f"{spec.strength:g}"
    if isinstance(spec, EditSpec) and spec.image_guidance_scale:
        fields["Image CFG scale"] = f"{spec.image_guidance_scale:g}"
    if spec.clip_skip:
        fields["Clip skip"] = spec.clip_skip + 1
    if isinstance(spec, InpaintSpec):
        fields["Mask blur"] = spec.region.blur
    lines = [_prompt(spec), ", ".join(f"{name}: {_quoted(str(value))}" for name, value in fields.items())]
    if spec.negative_prompt:
        lines.insert(1, f"Negative prompt: {_in_web_ui_language(spec.negative_prompt, spec)}")
    return "\n".join(lines)


def parse_infotext(text: str) -> dict[str, str]:
    """Return the parameters in a text of the web UI, by name; of a text without any only the prompt."""
    lines = text.strip().split("\n")
    fields = dict(FIELD.findall(lines[-1])) if len(lines[-1]) <= MAX_LINE else {}
    if len(fields) < MIN_FIELDS:
        return {"Prompt": text.strip(), "Negative prompt": ""}
    prompt, _, negative = "\n".join(lines[:-1]).partition("Negative prompt:")
    unquoted = {name: json.loads(value) if value.startswith('"') else value for name, value in fields.items()}
    return {"Prompt": prompt.strip(), "Negative prompt": negative.strip(), **unquoted}


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search("[,:\n]", value) else value


def _prompt(spec: GenerationSpec) -> str:
    loras = [f"<lora:{lora.name}:{lora.scale:g}>" for lora in spec.loras]
    return " ".join([_in_web_ui_language(getattr(spec, "prompt", ""), spec), *loras])


def _in_web_ui_language(prompt: str, spec: GenerationSpec) -> str:
    """Escape the brackets of a prompt that are not part of weights."""

    def escape(match: re.Match[str]) -> str:
        return match[0] if match[1] and spec.prompt_weighting else re.sub(r"[()\[\]\\]", r"\\\g<0>", match[0])

    return WEIGHTED.sub(escape, prompt)
