"""Text encoders in separate files, as user interfaces keep them beside FLUX and Stable Diffusion 3."""

from collections.abc import Mapping
from pathlib import Path

from ...errors import StartupError
from .checkpoint_weights import WeightFile
from .weight_kinds import examples, kind_of_weights

# A key of each kind of text encoder.
_CLIP = "text_model.embeddings.position_embedding.weight"
_T5 = "encoder.block.0.layer.0.SelfAttention.q.weight"
# The prefix of the first and of the second CLIP text encoder, and of T5, in files with other components.
_CLIP_PREFIXES = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
}
_T5_PREFIX = "text_encoders.t5xxl.transformer."


def text_encoder_file(file: Path, widths: Mapping[int, str]) -> WeightFile:
    """Return the file with the keys that its weights have in a checkpoint with all components.

    Args:
        widths: names of the CLIP text encoders of the model by their width.

    Raises:
        StartupError: it is not a text encoder of the model.
    """
    weights, _ = WeightFile(file).header()
    if _T5 in weights:
        prefix = _T5_PREFIX
    elif _CLIP not in weights:
        kind = kind_of_weights(weights) or f"not known (keys: {examples(weights)})"
        raise StartupError(f"`text_encoders`: {file.name} is {kind}, not a CLIP or T5 text encoder of transformers")
    elif (width := weights[_CLIP].shape[1]) not in widths:
        raise StartupError(
            f"`text_encoders`: {file.name} is a CLIP text encoder of width {width}; the model has "
            f"{' and '.join(map(str, sorted(widths))) or 'none'}"
        )
    else:
        prefix = _CLIP_PREFIXES[widths[width]]
    return WeightFile(file, lambda key: prefix + key)
