"""The text in which the AUTOMATIC1111 web UI writes the parameters of an image.

Other software for images reads it from the PNG chunk `parameters`.
"""

import json
import re

from img2img.domain.sampler_names import web_ui_names
from img2img.domain.spec import EditSpec, GenerationSpec, InpaintSpec, StrengthSpec

# A name and a value on the last line. A value with a comma or colon is a JSON string.
FIELD = re.compile(r'\s*(\w[\w \-/]{1,60}):\s*("(?:\\[\\"/bfnrt]|\\u[0-9a-fA-F]{4}|[^\\"\x00-\x1f])*"|[^",]*)(?:,|$)')
# A last line with fewer fields is part of the prompt, as in the web UI.
MIN_FIELDS = 3
# Longer lines would take long to parse.
MAX_LINE = 5000
# A weight, a bracket that is escaped already, or one that is not.
WEIGHTED = re.compile(r"(\((?:[^()\\]|\\[()\\]|\\(?![()\\]))+:[0-9]+(?:\.[0-9]+)?\)|\\[()\\])|[()\[\]\\]")
PLAIN = re.compile(r"[()\[\]\\]")
SQUARE = re.compile(r"[\[\]]")


def infotext(spec: GenerationSpec, seed: int, subseed: int | None = None) -> str:
    """Return the parameters of one image as the web UI writes them.

    Args:
        subseed: seed of its variation.
    """
    width, height = spec.result_size
    sampler, schedule = web_ui_names(spec.scheduler, spec.sigmas)
    fields: dict[str, object] = {
        "Steps": spec.num_inference_steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{spec.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model": spec.model,
    }
    if subseed is not None:
        fields |= {"Variation seed": subseed, "Variation seed strength": f"{spec.subseed_strength:g}"}
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
    if not spec.prompt_weighting:
        return PLAIN.sub(r"\\\g<0>", prompt)
    # Weights and escapes are the same in the web UI; square brackets are characters here.
    return WEIGHTED.sub(lambda match: SQUARE.sub(r"\\\g<0>", match[0]) if match[1] else f"\\{match[0]}", prompt)
