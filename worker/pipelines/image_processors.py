"""Processors of vision-language text encoders without torchvision.

The Qwen2-VL processor of transformers requires torchvision for its video processor. Images do not need it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin, Qwen2VLProcessor
from transformers.utils import is_torchvision_available

from ..errors import StartupError
from .loading.modular_index import LocalFiles, read_index

# Classes that this module loads without torchvision.
_QWEN = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")
# Classes of processors for which transformers needs it.
_WITH_TORCHVISION = ("PixtralProcessor", "Qwen3VLProcessor", "GlmImageProcessor")


class ImageOnlyProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen2-VL processor for text and images, without videos."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def image_only_processor(folder: str) -> dict[str, ImageOnlyProcessor]:
    """Return the processors of a pipeline in a folder, as arguments for `from_pretrained`.

    Empty if torchvision is installed.
    """
    if is_torchvision_available():
        return {}
    index = read_index(LocalFiles(Path(folder)))
    return {name: _load(folder, name) for name, class_name in _classes(index).items() if class_name in _QWEN}


def _load(folder: str, name: str) -> ImageOnlyProcessor:
    image_processor = AutoImageProcessor.from_pretrained(folder, subfolder=name)
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder=name)
    return ImageOnlyProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)


def check_processors(config: Mapping[str, Any]) -> None:
    """Check that transformers can load the processors of a pipeline.

    Args:
        config: content of model_index.json, or of the index of a modular pipeline in that form.

    Raises:
        StartupError: if a processor requires torchvision and it is not installed.
    """
    if is_torchvision_available():
        return
    for class_name in _classes(config).values():
        if class_name in _WITH_TORCHVISION:
            raise StartupError(f"{class_name} requires torchvision; run `pip install torchvision`")


def check_denoiser(denoiser: Any) -> None:
    """Check that diffusers can run a denoiser: that of Anima resizes a mask with torchvision.

    Raises:
        StartupError: if it requires torchvision and it is not installed.
    """
    if denoiser.config.get("concat_padding_mask") and not is_torchvision_available():
        raise StartupError(f"{type(denoiser).__name__} requires torchvision; run `pip install torchvision`")


def _classes(index: Mapping[str, Any]) -> dict[str, str]:
    """Return the class of each component in a model_index.json."""
    return {name: value[1] for name, value in index.items() if isinstance(value, list | tuple) and len(value) == 2}
