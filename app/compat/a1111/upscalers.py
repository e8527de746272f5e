"""Names of upscalers: interpolation, and the models' own upscaling."""

from PIL import Image

from img2img.domain.model_card import ModelCard

# Upscalers that only resize. `None` resizes as well, as in the web UI.
RESAMPLING = {
    "None": Image.Resampling.LANCZOS,
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}


def upscalers_of(card: ModelCard) -> dict[str, int]:
    """Return the factors of a model's own upscaling by the name of each."""
    return {f"{card.name} x{factor}": factor for factor in card.upscales}
