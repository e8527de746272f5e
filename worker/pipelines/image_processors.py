"""The part of a model that makes tokens of a prompt and a picture, where torchvision is not installed.

Transformers' own processor of Qwen2-VL asks for torchvision, for videos. Pictures alone do without.
"""

from collections.abc import Mapping
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin, Qwen2VLProcessor
from transformers.utils import is_torchvision_available

from ..errors import StartupError

FOLDER = "processor"  # of a pipeline


class ImageOnlyProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen2-VL's processor, for pictures and texts only."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def image_only_processor(source: str, revision: str | None = None) -> dict[str, ImageOnlyProcessor]:
    """The argument `processor` of a pipeline's `from_pretrained`, or none where transformers can load its own."""
    if is_torchvision_available():
        return {}
    where = {"subfolder": FOLDER, "revision": revision or "main"}
    images = AutoImageProcessor.from_pretrained(source, **where)
    return {"processor": ImageOnlyProcessor(images, AutoTokenizer.from_pretrained(source, **where))}


def check_processors(model: str, config: Mapping[str, Any]) -> None:
    """Raises StartupError where a pipeline of that config has a processor that transformers would not give."""
    kinds = [value[1] for value in config.values() if isinstance(value, list | tuple) and len(value) == 2]
    if "PixtralProcessor" in kinds and not is_torchvision_available():
        raise StartupError(f"model {model!r} needs torchvision, for its PixtralProcessor: `pip install torchvision`")
