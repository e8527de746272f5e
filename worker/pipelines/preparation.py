"""Preparation of jobs on loader threads, so that the engine's thread has less to do for them.

Stock pipelines tokenize prompts, convert images and draw noise between calls of their modules. What they ask for is
learned from earlier jobs of the same kind, done ahead for the next, and kept until the pipeline asks for it. A job
whose pipeline asks for something else, such as the first of its kind, does that itself: results are the same.
"""

import copy
import itertools
import threading
from collections.abc import Callable, Hashable, Iterable, MutableMapping
from functools import cache
from typing import Any

import torch
from cachetools import LRUCache
from diffusers import DiffusionPipeline
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedTokenizerBase

from ..engine.content import content_digest, lazy_digest, with_digest
from .job_noise import Draws, JobGenerator, use_job_noise
from .lookups import use_kept_lookups
from .uploads import HostTensor, on_host

# Prompts whose tokens are kept, for each tokenizer.
_PROMPTS = 1000
# Ways in which a tokenizer or an image processor is called, and kinds of jobs, that are remembered.
_WAYS = 8
_KINDS = 1000
# Noise of one job that is drawn ahead at most.
_NOISE_BYTES = 2**25


class Preparation:
    """Prepares the jobs of one model."""

    def __init__(self, pipelines: Iterable[DiffusionPipeline], device: torch.device) -> None:
        """Let tokenizers and image processors of the pipelines keep what they are asked for.

        Args:
            device: where the modules compute.
        """
        use_job_noise()
        use_kept_lookups()
        self._pins = device.type == "cuda"
        self._draws: LRUCache[Hashable, Draws] = LRUCache(_KINDS)
        self._lock = threading.Lock()
        for pipeline in pipelines:
            for part in vars(pipeline).values():
                if isinstance(part, PreTrainedTokenizerBase):
                    _keep_results(part, _KeptTokens, device)
            for name in ("image_processor", "mask_processor"):
                processor = vars(pipeline).get(name)
                if processor is not None and hasattr(processor, "preprocess"):
                    _keep_results(processor, _KeptImages, device)

    def prepare(self, pipeline: DiffusionPipeline, prompts: Iterable[str], images: Iterable[torch.Tensor]) -> None:
        """Tokenize prompts and convert images as earlier jobs did.

        Args:
            pipeline: pipeline object of the job.
            prompts: prompts of the job.
            images: images and masks of the job, (1, channels, height, width).
        """
        tokenizers = [part for part in vars(pipeline).values() if isinstance(part, PreTrainedTokenizerBase)]
        for tokenizer, prompt in itertools.product(tokenizers, prompts):
            tokenizer.kept.prepare(tokenizer, prompt)
            if hasattr(pipeline, "_maybe_convert_prompt"):
                pipeline._maybe_convert_prompt(prompt, tokenizer)
        images = list(images)
        for name, image in zip(("image_processor", "mask_processor"), images, strict=False):
            processor = vars(pipeline).get(name)
            if hasattr(processor, "kept"):
                processor.kept.prepare(processor, image)

    def generator(self, kind: Hashable, seed: int) -> JobGenerator:
        """Return the generator of a job.

        Args:
            kind: jobs of a kind draw noise of the same shapes.
        """
        generator = JobGenerator(seed)
        with self._lock:
            draws = self._draws.get(kind, ())
        generator.draw_ahead(_up_to(_NOISE_BYTES, draws), pin=self._pins)
        return generator

    def learn(self, kind: Hashable, generator: JobGenerator) -> None:
        """Remember which noise a job drew."""
        with self._lock:
            self._draws[kind] = tuple(generator.draws)


def _up_to(size: int, draws: Draws) -> Draws:
    total, count = 0, 0
    for shape, dtype in draws:
        total += torch.Size(shape).numel() * dtype.itemsize
        if total > size:
            break
        count += 1
    return draws[:count]


def _keep_results(part: Any, keeper: type["_Kept"], device: torch.device) -> None:
    """Give a tokenizer or an image processor a subclass of its class that keeps results, unless it has one."""
    if not hasattr(part, "kept"):
        kind: Any = type(part)
        object.__setattr__(part, "kept", keeper(kind, device))
        object.__setattr__(part, "__class__", _class_that_keeps(kind, keeper.method))


@cache
def _class_that_keeps(kind: type[Any], method: str) -> type[Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.kept.get(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, method: call})


class _Kept:
    """Results of one method of an object.

    Methods take the object, because a reference to it would be a cycle, which only the garbage collector frees.

    Args:
        kind: class of the object, before it is changed.
        device: where the results will be used.
    """

    method: str

    def __init__(self, kind: type[Any], device: torch.device) -> None:
        self._run = getattr(kind, self.method)
        self._is_for_device = device.type != "cpu"
        # Arguments beside the first one.
        self._ways: LRUCache[Any, None] = LRUCache(_WAYS)
        self._lock = threading.RLock()

    def _call(self, part: Any, value: Any, kwargs: Any) -> Any:
        result = self._run(part, value, **dict(kwargs))
        return on_host(result) if self._is_for_device else result


class _KeptTokens(_Kept):
    """The tokens of prompts."""

    method = "__call__"

    def __init__(self, kind: type[Any], device: torch.device) -> None:
        super().__init__(kind, device)
        self._results: LRUCache[Hashable, Any] = LRUCache(_PROMPTS)
        self._converted: LRUCache[str, str] = LRUCache(_PROMPTS)

    def get(self, part: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the tokens of a text, or of several: the first argument."""
        text: Any = args[0] if args else None
        is_list = isinstance(text, list)
        way = (is_list, tuple(kwargs.items()))
        key = (tuple(text) if is_list else text, way)
        # Padding and truncation are state of a tokenizer.
        with self._lock:
            # Callers may change lists, but not tensors.
            if len(args) != 1 or kwargs.get("return_tensors") != "pt" or not _is_hashable(key):
                return self._run(part, *args, **kwargs)
            if key not in self._results:
                self._results[key] = self._call(part, text, way[1])
            self._ways[way] = None
            # Encodings are moved to devices in place.
            return copy.copy(self._results[key])

    def _call(self, part: Any, value: Any, kwargs: Any) -> Any:
        encoding = self._run(part, value, **dict(kwargs))
        if self._is_for_device:
            encoding.data = on_host(encoding.data)
        return encoding

    def convert(self, prompt: str, convert: Callable[[], str]) -> str:
        """Return the result of `convert` for a prompt: with the names of all vectors of its embeddings."""
        with self._lock:
            if prompt not in self._converted:
                self._converted[prompt] = convert()
            return self._converted[prompt]

    def prepare(self, part: Any, prompt: str) -> None:
        """Make the tokens of a prompt in the ways in which those of others were asked for."""
        with self._lock:
            ways = list(self._ways)
        for is_list, kwargs in ways:
            self.get(part, [prompt] if is_list else prompt, **dict(kwargs))


class _KeptImages(_Kept):
    """Images as pipelines take them, for the lifetime of their originals."""

    method = "preprocess"

    def __init__(self, kind: type[Any], device: torch.device) -> None:
        super().__init__(kind, device)
        self._results: MutableMapping[torch.Tensor, dict[Hashable, Any]] = WeakTensorKeyDictionary()

    def get(self, part: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the converted image: the first argument."""
        image = args[0] if args else kwargs.get("image")
        way = tuple(kwargs.items())
        if len(args) != 1 or not isinstance(image, torch.Tensor) or not _is_hashable(way):
            return self._run(part, *args, **kwargs)
        with self._lock:
            self._ways[way] = None
            known = self._results.get(image)
        if known is not None and way in known:
            return known[way]
        return self._call(part, image, way)

    def prepare(self, part: Any, image: torch.Tensor) -> None:
        """Convert an image in the ways in which others were."""
        with self._lock:
            ways = list(self._ways)
        results = {way: self._call(part, image, way) for way in ways}
        for result in results.values():
            if isinstance(result, torch.Tensor):
                # Here, so that the engine's thread does not have to.
                content_digest(result, waits=False)
        with self._lock:
            self._results[image] = results

    def _call(self, part: Any, value: Any, kwargs: Any) -> Any:
        result = super()._call(part, value, kwargs)
        # By it gates know the image without reading it from the device.
        if isinstance(result, HostTensor):
            result.digest = lazy_digest(result)
        elif isinstance(result, torch.Tensor):
            with_digest(result, lazy_digest(result))
        return result


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
