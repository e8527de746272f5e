"""The kinds of checkpoints whose configurations and tokenizers are part of the package."""

from .checkpoint_configs import UNET_LAYOUTS
from .checkpoint_flow_configs import FLOW_LAYOUTS
from .checkpoint_layout import Layout

# By the type that diffusers infers from the weights.
LAYOUTS: dict[str, Layout] = {**UNET_LAYOUTS, **FLOW_LAYOUTS}
