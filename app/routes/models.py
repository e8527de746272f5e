"""The models that the service offers."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.convertors import PathConvertor, register_url_convertor

from img2img.domain.model_config import ModelName
from img2img.errors import NotFound

from ..backends.model_overview import ModelOverview
from ..dependencies import CallerDep, QueueDep, ServicesDep
from ..openapi import operations as openapi
from ..schemas.model_details import ModelDetails
from ..schemas.responses import ModelList

router = APIRouter(tags=["models"])


class ModelNameConvertor(PathConvertor):
    """A name with slashes, such as `org/name`, that is not followed by a part of the model, such as `/loras/ink`."""

    regex = r"(?s:(?!.*/loras/[^/]*\Z)(?!.*/reset\Z).+)"


class AnyNameConvertor(PathConvertor):
    """A name with slashes, also one with line breaks, which is then refused as invalid."""

    regex = r"(?s:.*)"


register_url_convertor("model", ModelNameConvertor())
register_url_convertor("name", AnyNameConvertor())

ModelPath = Annotated[ModelName, Path(alias="name", description="Name of the model; it may contain slashes.")]


def _overview(services: ServicesDep, queue: QueueDep, caller: CallerDep) -> ModelOverview:
    return ModelOverview(services.redis, queue, services.default_model.name, is_admin=caller.may_administer)


OverviewDep = Annotated[ModelOverview, Depends(_overview)]


@router.get("/models", operation_id="list_models", responses=openapi.problems(503))
def list_models(overview: OverviewDep) -> ModelList:
    """List the models that live workers serve, with the capabilities of each, and those that are being loaded.

    While no worker is live, these are the models that were served last: jobs for them wait for a worker.
    """
    return overview.read_all()


@router.get("/models/{name:model}", operation_id="get_model", responses=openapi.problems(404, 422, 503))
def get_model(name: ModelPath, overview: OverviewDep) -> ModelDetails:
    """Return one model: its state on each worker, its capabilities, and how requests have changed it."""
    if not overview.exists(name):
        raise NotFound(f"There is no model {name}.")
    return overview.status(name)
