"""Changes of models while the service runs. They need an API key with the scope `admin`."""

from collections.abc import Callable
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Request, Response

from img2img.domain.api_key import Scope
from img2img.domain.conditioning import LoraName
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.errors import NotFound, ParameterError
from img2img.model_sources import InvalidSource, check_component, check_folders, check_names, parse_folders, path_within
from img2img.redis.job_queue import JobQueue
from img2img.redis.model_definitions import ModelDefinitions

from ..backends.model_overview import ModelOverview
from ..dependencies import CallerDep, QueueDep, ServicesDep
from ..http.authentication import Caller
from ..http.errors import InsufficientScope
from ..openapi import operations as openapi
from ..schemas.model_details import ModelDetails
from ..settings import ApiSettings
from .body_parser import read_document
from .models import ModelPath, OverviewDep

router = APIRouter(tags=["models"])

LoraPath = Annotated[LoraName, Path(alias="lora", description="Name of the LoRA in requests.")]


async def _administrator(caller: CallerDep) -> Caller:
    """Return the caller. Raises InsufficientScope if it may not change models."""
    if not caller.may_administer:
        # With API keys, the scope was checked before.
        raise InsufficientScope(
            Scope.ADMIN,
            "Without API keys, models can only be changed where the service listens on loopback. Create a key: "
            "img2img keys create --name NAME --scope admin, and unset IMG2IMG_INSECURE.",
        )
    return caller


class ModelAdministration:
    """Makes changes of one caller, and answers with the state that follows."""

    def __init__(
        self,
        services: ServicesDep,
        queue: QueueDep,
        overview: OverviewDep,
        caller: Annotated[Caller, Depends(_administrator)],
    ) -> None:
        self.definitions = ModelDefinitions(services.redis, caller.actor)
        self.settings: ApiSettings = services.settings
        self._queue: JobQueue = queue
        self._overview: ModelOverview = overview

    def check_exists(self, name: str) -> None:
        """Raise NotFound if there is no such model."""
        if not self._overview.exists(name):
            raise NotFound(f"There is no model {name}.")

    def check_lora_exists(self, name: str, lora: str) -> None:
        """Raise NotFound if there is no such model, or it has no such LoRA."""
        self.check_exists(name)
        status = self._overview.status(name)
        added = status.change.loras if status.change else {}
        defined = status.change.model.loras if status.change and status.change.model else {}
        loaded = status.card.loras if status.card else ()
        if added.get(lora) is None and (lora in added or lora not in {*defined, *loaded}):
            raise NotFound(f"The model {name} has no LoRA {lora}.")

    def answer(self, name: str, response: Response, *, changed: bool) -> ModelDetails:
        """Return the state of the model: with 202 if workers have to follow the change."""
        self._queue.writes.confirm()
        response.headers["Location"] = f"/models/{name}"
        response.status_code = 202 if changed else 200
        return self._overview.status(name)


def _check(check: Callable[[], object]) -> None:
    """Call a check of sources. Raises ParameterError for the source that it refuses."""
    try:
        check()
    except InvalidSource as error:
        raise ParameterError(error.key, str(error), got=error.got) from None


AdministrationDep = Annotated[ModelAdministration, Depends()]


async def _read_lora(request: Request) -> ComponentSource:
    return await read_document(request, ComponentSource)


async def _read_model(request: Request) -> ModelConfig:
    return await read_document(request, ModelConfig)


@router.put(
    "/models/{name:name}/loras/{lora}",
    operation_id="put_lora",
    openapi_extra={"requestBody": openapi.json_body("ComponentSource")},
    responses=openapi.MODEL_CHANGE | openapi.problems(400, 404, 413, 415, 422, 429, 503),
    status_code=202,
)
async def put_lora(
    name: ModelPath,
    lora: LoraPath,
    administration: AdministrationDep,
    source: Annotated[ComponentSource, Depends(_read_lora)],
    response: Response,
) -> ModelDetails:
    """Add a LoRA to a model, or replace it. Running jobs keep the LoRAs that they started with.

    A change by request takes precedence over the model file, and survives restarts.
    """

    def put() -> ModelDetails:
        _check(lambda: check_component(source))
        if (folders := administration.settings.model_folders) is not None:
            _check(lambda: path_within(parse_folders(folders), "source", source.source))
        administration.check_exists(name)
        return administration.answer(name, response, changed=administration.definitions.put_lora(name, lora, source))

    return await run_sync(put)


@router.delete(
    "/models/{name:name}/loras/{lora}",
    operation_id="delete_lora",
    responses=openapi.MODEL_CHANGE | openapi.problems(404, 422, 429, 503),
    status_code=202,
)
def delete_lora(name: ModelPath, lora: LoraPath, administration: AdministrationDep, response: Response) -> ModelDetails:
    """Remove a LoRA from a model, also one of the model file. Jobs that wait for it fail, running jobs keep it."""
    administration.check_lora_exists(name, lora)
    return administration.answer(name, response, changed=administration.definitions.remove_lora(name, lora))


@router.post(
    "/models/{name:name}/reset",
    operation_id="reset_model",
    responses=openapi.MODEL_CHANGE | openapi.problems(422, 503),
    status_code=202,
)
def reset_model(name: ModelPath, administration: AdministrationDep, response: Response) -> ModelDetails:
    """Forget how requests have changed a model, so that the model files of the workers decide again."""
    return administration.answer(name, response, changed=administration.definitions.reset(name))


@router.put(
    "/models/{name:model}",
    operation_id="put_model",
    openapi_extra={"requestBody": openapi.json_body("ModelConfig")},
    responses=openapi.MODEL_CHANGE | openapi.problems(400, 413, 415, 422, 429, 503),
    status_code=202,
)
async def put_model(
    name: ModelPath,
    administration: AdministrationDep,
    config: Annotated[ModelConfig, Depends(_read_model)],
    response: Response,
) -> ModelDetails:
    """Add a model, or replace its whole definition. Running jobs keep the model that they started with.

    The fields are the keys of a model file. Paths refer to the disk of the workers, and are permitted in the folders
    of `IMG2IMG_MODEL_FOLDERS`. A change by request takes precedence over the model file, and survives restarts.
    """

    def put() -> ModelDetails:
        if config.name not in ("", name):
            raise ParameterError("name", f"Input should be absent, or {name} as in the path", got=config.name)
        _check(lambda: check_names(config))
        if (folders := administration.settings.model_folders) is not None:
            _check(lambda: check_folders(config, parse_folders(folders)))
        return administration.answer(name, response, changed=administration.definitions.put(name, config))

    return await run_sync(put)


@router.delete(
    "/models/{name:model}",
    operation_id="delete_model",
    responses=openapi.MODEL_CHANGE | openapi.problems(404, 422, 429, 503),
    status_code=202,
)
def delete_model(name: ModelPath, administration: AdministrationDep, response: Response) -> ModelDetails:
    """Remove a model from all workers, also one of the model file. Its queued and running jobs are finished first."""
    administration.check_exists(name)
    return administration.answer(name, response, changed=administration.definitions.remove(name))
