"""The models that the service offers."""

from fastapi import APIRouter

from img2img.domain.model_card import model_name

from ..dependencies import ModelsDep, QueueDep, SettingsDep
from ..openapi import operations as openapi
from ..schemas.responses import ModelList, ServedModel

router = APIRouter(tags=["models"])


@router.get("/models", operation_id="list_models", responses=openapi.problems(503))
def list_models(models: ModelsDep, queue: QueueDep, settings: SettingsDep) -> ModelList:
    """List the models that live workers serve, and the capabilities of each."""
    cards = models.known()
    default = model_name(settings.model)
    return ModelList(
        models=[
            ServedModel(**cards[name].model_dump(), workers=workers, queued=queue.depth(name), default=name == default)
            for name, workers in sorted(models.live().items())
        ]
    )
