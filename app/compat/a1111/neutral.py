"""Fields of the web UI that this service does not have: which values ask for nothing, and why others are refused."""

from collections.abc import Mapping
from typing import Any

from img2img.errors import ParameterError

# What no field asks for anything with.
EMPTY: tuple[Any, ...] = (None, False, 0, "", "None", [], {})
# Accepted with any value: they are about the server's disk, the web UI itself or a client, or belong to another field
# that is refused if it is used.
IGNORED = frozenset(
    (
        "override_settings_restore_afterwards",
        "do_not_save_samples",
        "do_not_save_grid",
        "save_images",
        "force_task_id",
        "comments",
        "seed_enable_extras",
        "use_async",
        "use_deprecated_controlnet",
        "outpainting_fill",
        # Only together with `s_churn`, `refiner_checkpoint` and `script_name`.
        "s_tmax",
        "s_tmin",
        "refiner_switch_at",
        "script_args",
        # Only together with `enable_hr`.
        "hr_scale",
        "hr_upscaler",
        "hr_second_pass_steps",
        "hr_resize_x",
        "hr_resize_y",
        "hr_square_aspect",
        "hr_fix_lock_px",
        "hr_denoising_strength",
        "hr_checkpoint_name",
        "hr_additional_modules",
        "hr_sampler_name",
        "hr_scheduler",
        "hr_prompt",
        "hr_negative_prompt",
        "hr_cfg",
        "hr_distilled_cfg",
        "firstphase_width",
        "firstphase_height",
    )
)
# Defaults of the web UI, or of its forks, that are not empty.
DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "seed_resize_from_h": (-1,),
    "seed_resize_from_w": (-1,),
    "initial_noise_multiplier": (1,),
    "distilled_cfg_scale": (3.5,),
}
REASONS: Mapping[str, str] = {
    "styles": "This service has no styles; write their text into `prompt`",
    "seed_resize_from_h": "Seeds of another size are not supported; leave it out",
    "seed_resize_from_w": "Seeds of another size are not supported; leave it out",
    "initial_noise_multiplier": "The noise cannot be scaled; leave it out",
    "restore_faces": "There is no face restoration; leave it out",
    "s_min_uncond": "Guidance cannot be skipped in part; leave it out",
    "s_churn": "The sampler's `s_churn` cannot be set; leave it out",
    "refiner_checkpoint": "A refiner belongs to its model here and is used by default; leave it out",
    "enable_hr": "There is no second pass; send the result to the script `sd upscale`, or to `extra-single-image`",
    "firstpass_image": "There is no second pass; give the image in `init_images`",
    "latent_mask": "Give the mask in `mask`",
    "infotext": "Parameters are read from the fields only; give them there",
    "distilled_cfg_scale": "Give the guidance in `cfg_scale`",
}


def check_unknown(fields: Mapping[str, Any], prefix: str = "") -> None:
    """Check fields that this service does not have.

    Args:
        prefix: Start of the names in errors.

    Raises:
        ParameterError: A field asks for something.
    """
    for name, value in fields.items():
        if name not in IGNORED and not is_neutral(name, value):
            reason = REASONS.get(name, "The field is not supported; leave it out")
            raise ParameterError(prefix + name, reason, got=value)


def is_neutral(name: str, value: Any) -> bool:
    """Return whether a value of a field asks for nothing."""
    return value in EMPTY or value in DEFAULTS.get(name, ())
