"""Processors of vision-language text encoders without torchvision.

The Qwen2-VL processor of transformers requires torchvision for its video processor. Images do not need it.
"""

from collections.abc import Mapping
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin, Qwen2VLProcessor
from transformers.utils import is_torchvision_available

from ..errors import StartupError

# Subfolder of a pipeline.
FOLDER = "processor"


class ImageOnlyProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen2-VL processor for text and images, without videos."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def image_only_processor(folder: str) -> dict[str, ImageOnlyProcessor]:
    """Return the `processor` argument for `from_pretrained`; empty if torchvision is installed."""
    if is_torchvision_available():
        return {}
    image_processor = AutoImageProcessor.from_pretrained(folder, subfolder=FOLDER)
    return {"processor": ImageOnlyProcessor(image_processor, AutoTokenizer.from_pretrained(folder, subfolder=FOLDER))}


def check_processors(config: Mapping[str, Any]) -> None:
    """Check that transformers can load the processors of a pipeline.

    Args:
        config: content of model_index.json.

    Raises:
        StartupError: if a processor requires torchvision and it is not installed.
    """
    class_names = [value[1] for value in config.values() if isinstance(value, list | tuple) and len(value) == 2]
    if "PixtralProcessor" in class_names and not is_torchvision_available():
        raise StartupError("PixtralProcessor requires torchvision; run `pip install torchvision`")
