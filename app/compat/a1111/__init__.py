"""The API of the AUTOMATIC1111 web UI and of its ControlNet extension.

https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API
"""

from fastapi import APIRouter
from fastapi.routing import APIRoute

from img2img.errors import NotFound

from . import controlnet, extras, lists, options, routes

WEB_UI, CONTROLNET = "/sdapi/v1", "/controlnet"
NOT_FOR_TEXT = (
    "Images cannot be made of text alone. `/sdapi/v1/img2img` starts from an image; `POST /img2img` also from "
    "`controls` alone."
)

router = APIRouter(include_in_schema=False)
_KNOWN: list[str] = []
for _prefix, _module in (*((WEB_UI, one) for one in (routes, options, lists, extras)), (CONTROLNET, controlnet)):
    for _route in _module.router.routes:
        if isinstance(_route, APIRoute):
            # In one list, for those who look through the routes.
            router.add_api_route(_prefix + _route.path, _route.endpoint, methods=list(_route.methods or ()))
            _KNOWN.append(_prefix + _route.path)


@router.post(f"{WEB_UI}/txt2img")
@router.post(f"{CONTROLNET}/txt2img")
def txt2img() -> None:
    """Names the alternative: this service makes images of images."""
    raise NotFound(NOT_FOR_TEXT)


@router.post(f"{WEB_UI}/interrogate")
def interrogate() -> None:
    """Says what cannot be done."""
    raise NotFound("Images cannot be described in words: no model here reads them.")


@router.api_route(WEB_UI + "/{path:path}", methods=["GET", "POST"])
def not_supported(path: str) -> None:
    """Names the endpoints that there are."""
    raise NotFound(f"{WEB_UI}/{path} is not supported. Supported are: {', '.join(dict.fromkeys(_KNOWN))}.")


@router.api_route(CONTROLNET + "/{path:path}", methods=["GET", "POST"])
def no_such_controlnet_endpoint(path: str) -> None:
    """Names the endpoints that there are."""
    known = dict.fromkeys(known for known in _KNOWN if known.startswith(CONTROLNET))
    raise NotFound(f"{CONTROLNET}/{path} is not supported. Supported are: {', '.join(known)}.")
