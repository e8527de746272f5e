"""What the service can make."""

from fastapi import APIRouter

from app import openapi
from app.contract.models import model_name
from app.deps import ModelsDep, QueueDep, SettingsDep
from app.views import ModelList, ModelView

router = APIRouter(tags=["models"])


@router.get("/models", operation_id="list_models", responses=openapi.problems(503))
def list_models(models: ModelsDep, queue: QueueDep, settings: SettingsDep) -> ModelList:
    """The models that live workers serve, and what each can do."""
    cards = models.known()
    default = model_name(settings.model)
    return ModelList(
        models=[
            ModelView(**cards[name].model_dump(), workers=workers, queued=queue.depth(name), default=name == default)
            for name, workers in sorted(models.live().items())
        ]
    )
