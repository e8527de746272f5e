"""Model cards of workers that do not exist."""

from img2img.domain.model_card import ModelCard, size_buckets
from img2img.domain.parameters import FLOW_SCHEDULERS, Scheduler, Task

CARD = ModelCard(
    name="demo",
    family="sd1",
    native_size=128,
    size_multiple=8,
    min_size=64,
    max_size=256,
    sizes=size_buckets(128, 8),
    schedulers=tuple(Scheduler),
    default_scheduler=Scheduler.DDIM,
)
# A flow model without guidance, which refuses the parameters of other models.
PLAIN = CARD.model_copy(
    update={
        "name": "plain",
        "tasks": (Task.IMG2IMG, Task.EDIT),
        "schedulers": FLOW_SCHEDULERS,
        "default_scheduler": Scheduler.FLOW_EULER,
        "negative_prompt": False,
        "guidance": False,
        "image_guidance": False,
        "prompt_weighting": False,
    }
)
DDIM_ONLY = CARD.model_copy(update={"name": "ddim-only", "schedulers": (Scheduler.DDIM,)})
