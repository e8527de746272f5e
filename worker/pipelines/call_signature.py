"""Reads from the signature of a pipeline's `__call__` which tasks it has, and makes its arguments."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffusers import DiffusionPipeline

from img2img.domain.parameters import MAX_STEPS, Task
from img2img.domain.spec import DenoisingSpec

from ..errors import StartupError
from .pipeline_arguments import Arguments, to_pil

# Names of the argument for the image, and of that for the mask. An argument with a plural name takes a list.
IMAGE_ARGUMENTS = ("image", "images", "input_images")
_MASK = ("mask_image", "mask")
# Arguments that pipelines cannot do without, although some have None as their default.
_ALWAYS_NEEDED = ("control_image", "original_image")
# A scale counts as that of the guidance if its default guides.
_SCALES = ("true_cfg_scale", "guidance_scale")
# Words in the names of classes whose image, or whose result, is not what an edit has.
_OTHER_KINDS = {
    "Prior": "its result is an embedding, not an image",
    "Upscale": "its result is larger than the image; list it in `upscale` of its base model",
    "SuperResolution": "its result is larger than the image",
    "ControlNet": "its image is a control map; list the ControlNet in `controlnets` of its base model",
    "Adapter": "its image is a control map",
}


@dataclass(frozen=True)
class CallSignature:
    """The call of a pipeline class that edits images.

    Attributes:
        kind: the class.
        parameters: the arguments of its call.
    """

    kind: type[DiffusionPipeline]
    parameters: Mapping[str, inspect.Parameter]

    @cached_property
    def image(self) -> str:
        return next(name for name in IMAGE_ARGUMENTS if name in self.parameters)

    @cached_property
    def mask(self) -> str | None:
        return next((name for name in _MASK if name in self.parameters), None)

    @cached_property
    def scale(self) -> str | None:
        """The argument for the guidance scale."""
        given = [name for name in _SCALES if name in self.parameters]
        guiding = [name for name in given if _number(self.parameters[name].default) > 1]
        return next(iter((*guiding, *reversed(given))), None)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """What the call does with a request's image."""
        strength = "strength" in self.parameters
        if self.mask is None:
            return (Task.IMG2IMG,) if strength else (Task.EDIT,)
        # Editors can have a mask that may be left out.
        is_editor = not strength and not any(word in self.kind.__name__ for word in ("Inpaint", "Fill"))
        return (Task.EDIT, Task.INPAINT) if is_editor else (Task.INPAINT,)

    @property
    def has_strength(self) -> bool:
        return "strength" in self.parameters

    @property
    def takes_list(self) -> bool:
        """Whether the images are the elements of a list."""
        return self.image.endswith("s") or str(self.parameters[self.image].annotation).startswith(("list[", "List["))

    @property
    def steps(self) -> int:
        """Default number of steps."""
        steps = int(_number(self.parameters["num_inference_steps"].default))
        return min(max(steps, 1), MAX_STEPS) if steps else 30

    @property
    def guidance_scale(self) -> float:
        """Default of the guidance scale; 1 is none."""
        return max(1.0, _number(self.parameters[self.scale].default)) if self.scale else 1.0

    @property
    def negative_prompt(self) -> bool:
        return "negative_prompt" in self.parameters

    def arguments(self, spec: DenoisingSpec, given: Arguments) -> Arguments:
        """Return the arguments of a job.

        Args:
            given: those of a Stable Diffusion pipeline.
        """
        images = [to_pil(given["image"]), *given.get("references", ())]
        arguments: Arguments = {"prompt": given["prompt"], self.image: images if self.takes_list else images[0]}
        if self.image == "input_images":
            arguments["prompt"] = _naming_images(given["prompt"], len(images))
        if spec.task is Task.INPAINT and self.mask is not None:
            arguments[self.mask] = to_pil(given["mask_image"])
        # The size of a request is one that the model can make.
        if "use_resolution_binning" in self.parameters:
            arguments["use_resolution_binning"] = False
        if self.has_strength and "strength" in given:
            arguments["strength"] = given["strength"]
        for name, value in (("width", spec.width), ("height", spec.height)):
            if name in self.parameters:
                arguments[name] = value
        if given.get("image_guidance_scale") and "image_guidance_scale" in self.parameters:
            arguments["image_guidance_scale"] = given["image_guidance_scale"]
        if self.scale is not None:
            arguments[self.scale] = spec.guidance_scale
        if self.negative_prompt and spec.guidance_scale > 1:
            # Pipelines with `true_cfg_scale` guide only if they get a negative prompt.
            blank = " " if self.scale == "true_cfg_scale" else None
            arguments["negative_prompt"] = given["negative_prompt"] or blank
        return arguments


def read_call(kind: type[DiffusionPipeline]) -> CallSignature:
    """Return the signature of a pipeline's call.

    Raises:
        StartupError: it is not one that a request has the arguments for.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(kind.__call__).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    others = (reason for word, reason in _OTHER_KINDS.items() if word in kind.__name__)
    if reason := next(others, None) or why_not(parameters):
        raise StartupError(reason)
    return CallSignature(kind, parameters)


def why_not(parameters: Mapping[str, inspect.Parameter]) -> str | None:
    image = next((name for name in IMAGE_ARGUMENTS if name in parameters), None)
    given = (image, *_MASK, "prompt", "num_inference_steps", "strength", "width", "height", *_SCALES)
    needed = [
        name
        for name, parameter in parameters.items()
        if name in _ALWAYS_NEEDED or (parameter.default is parameter.empty and name not in given)
    ]
    if {"num_frames", "frames", "video"} & set(parameters):
        return "it makes videos"
    if image is None:
        return "its call takes no image"
    if needed:
        named = ", ".join(f"`{name}`" for name in needed)
        return f"its call needs {named}, which no field of a request gives"
    if "prompt" not in parameters:
        return "its call takes no prompt"
    if "num_inference_steps" not in parameters:
        return "its call has no `num_inference_steps`"
    output = parameters.get("output_type")
    if output is not None and output.default not in ("pil", "pt", "np", output.empty, None):
        return "its result is no image"
    if "layers" in parameters:
        return "it returns the layers of an image, and a job returns whole images"
    return None


def _naming_images(prompt: str, count: int) -> str:
    """Return a prompt of OmniGen that names each image. Those that it does not name come first."""
    names = [f"<img><|image_{i + 1}|></img>" for i in range(count)]
    return " ".join((*(name for name in names if name not in prompt), prompt))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
