"""The models that the service offers."""

from fastapi import APIRouter

from img2img.domain.model_card import model_name

from ..dependencies import CallerDep, ModelsDep, QueueDep, SettingsDep
from ..openapi import operations as openapi
from ..schemas.responses import ModelAvailability, ModelList, ServedModel, by_model

router = APIRouter(tags=["models"])


@router.get("/models", operation_id="list_models", responses=openapi.problems(503))
def list_models(models: ModelsDep, queue: QueueDep, settings: SettingsDep, caller: CallerDep) -> ModelList:
    """List the models that live workers serve: the capabilities of each, and whether it is loaded.

    Jobs can be submitted for all of them. A model that is not loaded is loaded when its jobs need it.
    """
    cards = models.known()
    default = model_name(settings.model)
    served = {name: workers for name, workers in sorted(models.live().items()) if name in cards}
    states = by_model(models.states(), with_paths=caller.visible_owner is None)
    return ModelList(
        models=[
            ServedModel(
                **cards[name].model_dump(),
                state=ModelAvailability.best_of(status.state for status in states[name]),
                statuses=states[name],
                workers=workers,
                queued=queue.depth(name),
                default=name == default,
            )
            for name, workers in served.items()
            if name in states
        ]
    )
