"""The layout of a kind of checkpoint: the files beside the weights in diffusers' format.

A checkpoint in one file has weights only.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers

from .clip_tokenizer import clip_tokenizer
from .t5_tokenizer import t5_tokenizer

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the package.

    Attributes:
        class_name: class that a model_index.json names.
    """

    class_name: str
    make: Callable[[], Any]


CLIP = Tokenizer("CLIPTokenizer", clip_tokenizer)
# OpenCLIP pads short prompts with token 0.
OPENCLIP = Tokenizer("CLIPTokenizer", partial(clip_tokenizer, "!"))
T5 = Tokenizer("T5TokenizerFast", t5_tokenizer)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The components of a kind of checkpoint.

    Attributes:
        optional: text encoders that the pipeline works without.
        v_prediction: whether the denoiser predicts v if the file does not name its prediction type.
        index: fields of model_index.json beside the components.
    """

    pipeline: str
    denoiser: Config
    vae: Config
    text_encoders: Mapping[str, Config]
    tokenizers: Mapping[str, Tokenizer]
    scheduler: Config
    # Components beside these, such as a second scheduler.
    others: Mapping[str, Config] = field(default_factory=dict)
    optional: Collection[str] = ()
    v_prediction: bool = False
    index: Mapping[str, Any] = field(default_factory=dict)

    def write(
        self,
        folder: Path,
        *,
        in_channels: int,
        prediction_type: str | None = None,
        zero_snr: bool = False,
        pipeline: str | None = None,
        without: Collection[str] = (),
    ) -> None:
        """Write the configurations to a folder in diffusers' format. Tokenizers have no files.

        Args:
            in_channels: input channels of a UNet: more than 4 with an image beside the latents.
            prediction_type: `epsilon` or `v_prediction` of a UNet; None for that of the layout.
            zero_snr: whether the noise schedule ends at a signal-to-noise ratio of zero.
            pipeline: class of the pipeline; default: that of the layout.
            without: optional text encoders to leave out, with their tokenizers.
        """
        denoiser, scheduler = dict(self.denoiser), dict(self.scheduler)
        is_unet = denoiser["_class_name"] == "UNet2DConditionModel"
        if is_unet:
            chosen = prediction_type or ("v_prediction" if self.v_prediction else "epsilon")
            scheduler["prediction_type"] = chosen
            if zero_snr:
                scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
            denoiser["in_channels"] = in_channels
            # Stable Diffusion 2 was published for 512 pixels with epsilon, for 768 pixels with v.
            denoiser.setdefault("sample_size", 96 if chosen == "v_prediction" else 64)
        parts = {"unet" if is_unet else "transformer": denoiser, "vae": self.vae, **self.text_encoders}
        schedulers = {"scheduler": scheduler, **self.others}
        index = {
            **self.index,
            "_class_name": pipeline or self.pipeline,
            **{name: ["diffusers", config["_class_name"]] for name, config in schedulers.items()},
            **{name: ["transformers", tokenizer.class_name] for name, tokenizer in self.tokenizers.items()},
            **{name: _reference(config) for name, config in parts.items()},
        }
        for name in without:
            index[name] = index[name.replace("text_encoder", "tokenizer")] = [None, None]
        _write(folder / "model_index.json", index)
        for name, config in schedulers.items():
            _write(folder / name / "scheduler_config.json", config)
        for name, config in parts.items():
            if name not in without:
                _write(folder / name / "config.json", config)


def _reference(config: Config) -> list[str]:
    """Return the library and the class of a component."""
    if "_class_name" in config:
        return ["diffusers", config["_class_name"]]
    return ["transformers", *config["architectures"]]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Pipelines read the version from the configuration of the UNet.
    file.write_text(json.dumps({"_diffusers_version": diffusers.__version__, **content}))
