"""Errors with the web UI's names of fields."""

from collections.abc import Iterator
from contextlib import contextmanager

from img2img.errors import ParameterError

# The web UI's names of fields of `POST /img2img`.
FIELDS = {
    "image": "init_images",
    "loras": "prompt",
    "prompt_weighting": "prompt",
    "instruction": "prompt",
    "strength": "denoising_strength",
    "guidance_scale": "cfg_scale",
    "image_guidance_scale": "image_cfg_scale",
    "num_inference_steps": "steps",
    "scheduler": "sampler_name",
    "sigmas": "scheduler",
    "num_images": "batch_size",
    "resize": "resize_mode",
    "model": "override_settings.sd_model_checkpoint",
    "clip_skip": "override_settings.CLIP_stop_at_last_layers",
    "mask_padding": "inpaint_full_res_padding",
    "mask_content": "inpainting_fill",
    "upscale": "script_args",
    "controls": "controlnet",
    "guess_mode": "controlnet",
    "exact_steps": "override_settings.img2img_fix_steps",
    "weighting_method": "prompt",
    "soft_inpainting": "alwayson_scripts",
    "freeu": "alwayson_scripts",
    "pag_scale": "alwayson_scripts",
    "image_prompts": "controlnet",
    "refine": "alwayson_scripts.ADetailer",
}


@contextmanager
def web_ui_fields() -> Iterator[None]:
    """Name the fields of errors as the web UI does."""
    try:
        yield
    except ParameterError as error:
        first, _, rest = error.field.partition(".")
        name = FIELDS.get(first, error.field)
        error.field = f"{name}.{rest}" if name == "controlnet" and rest else name
        raise
