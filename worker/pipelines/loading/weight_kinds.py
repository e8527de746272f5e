"""Names the kind of a safetensors file by its keys, for files that are given in the wrong place."""

import re
from collections.abc import Collection

# Keys of the LoRAs that diffusers does not load, see `delta_layers`.
CHANGE = r"\.(?:dora_scale|hada_w\d_[ab]|hada_t\d|lokr_(?:w|t)\d(?:_[ab])?|diff|lora_mid\.weight)$"
CHANGES = "a LoHa, LoKr, DoRA or another LoRA of LyCORIS"
LORA = "a LoRA"
# Kind by a pattern that one of the keys matches. The first that matches counts.
_KINDS = (
    (r"\.on_input$|ia3_l", "an IA3 (LyCORIS)"),
    (r"oft_(?:blocks|diag)|oft_r", "an OFT (LyCORIS)"),
    (r"\.[ab][12]\.weight$", "a GLoRA (LyCORIS)"),
    (r"\.[wb]_norm$", "a LyCORIS file that changes norms"),
    (r"^bundle_emb\.", "a LoRA with bundled textual inversions"),
    (CHANGE, CHANGES),
    (r"lora_(?:A|B|down|up)\b|\.lora\.(?:down|up)\.|_lora\.(?:down|up)\.|lora_linear_layer", LORA),
    (r"^image_proj\.|^ip_adapter\.", "an IP-Adapter"),
    (r"^control_model\.|controlnet_|^input_hint_block\.", "a ControlNet"),
    (r"^conditioner\.embedders\.", "a Stable Diffusion XL checkpoint"),
    (r"^(?:model\.diffusion_model\.)?double_blocks\.", "a FLUX checkpoint"),
    (r"^(?:model\.diffusion_model\.)?joint_blocks\.", "a Stable Diffusion 3 checkpoint"),
    (r"^(?:model\.diffusion_model\.)?cap_embedder\.", "a Z-Image or Lumina checkpoint"),
    (r"^input_blocks\.", "a Stable Diffusion denoiser"),
    (r"^model\.diffusion_model\.|^cond_stage_model\.|^first_stage_model\.", "a Stable Diffusion checkpoint"),
    (r"^emb_params$|^clip_[lg]$|^string_to_param", "a textual inversion"),
    (r"^(?:encoder\.down|decoder\.up)(?:_blocks)?\.", "an autoencoder (VAE)"),
    (r"^(?:model\.diffusion_model\.)?(?:down_blocks|transformer_blocks|single_transformer_blocks)\.", "a denoiser"),
    (r"^text_model\.|^encoder\.block\.\d+\.layer\.|^model\.layers\.", "a text encoder"),
)
# A textual inversion that is saved under its token has few keys.
_FEW_KEYS = 4


def kind_of_weights(keys: Collection[str]) -> str | None:
    """Return the kind of a file with these keys in words, with its article; None if it is not known."""
    for pattern, kind in _KINDS:
        if any(re.search(pattern, key) for key in keys):
            return kind
    if keys and len(keys) <= _FEW_KEYS and all("." not in key or key.startswith("<") for key in keys):
        return "a textual inversion"
    return None


def examples(keys: Collection[str]) -> str:
    """Return two of the keys, for files of unknown kind."""
    return ", ".join(key if len(key) <= 50 else f"{key[:50]}..." for key in sorted(keys)[:2]) or "none"
