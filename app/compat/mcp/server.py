"""The tools: each is a task of `POST /img2img`."""

from collections.abc import Callable
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase
from pydantic import BaseModel, ConfigDict, Field, model_validator

from img2img import __version__
from img2img.client import AsyncClient, Model

from .jobs import Content, Service, content_of

INSTRUCTIONS = """Tools that change images with diffusion models. They return images, and for each a reference such as
/jobs/ID/images/0, which is accepted wherever a tool takes an image. `models` lists the models and their tasks."""

REMOTE_IMAGE = "PNG, JPEG or WebP as base64 or a data: URI, or a reference such as /jobs/ID/images/0."
LOCAL_IMAGE = "Path of a PNG, JPEG or WebP file, a data: URI, or a reference such as /jobs/ID/images/0."

Prompt = Annotated[str, Field(description="What the result should show.")]
JobId = Annotated[str, Field(min_length=1, description="Id of a job.")]
Strength = Annotated[
    float | None, Field(ge=0, le=1, description="How much of the image is replaced: 0 returns it, 1 replaces all.")
]


class Options(BaseModel):
    """Options of most tools; also any other field of `POST /img2img`, such as `loras` or `scheduler`."""

    model_config = ConfigDict(extra="allow")

    negative_prompt: Annotated[str | None, Field(description="What the result should not show.")] = None
    num_images: Annotated[int | None, Field(ge=1, le=8, description="How many variants to make. Default: 1.")] = None
    seed: Annotated[int | None, Field(description="The same seed gives the same image. Default: random.")] = None
    num_inference_steps: Annotated[int | None, Field(description="Default: the model's.")] = None
    guidance_scale: Annotated[float | None, Field(description="Default: the model's.")] = None
    model: Annotated[str | None, Field(description="One of the tool `models`. Default: the service's.")] = None


NONE = Options()


class Arguments(ArgModelBase):
    """Arguments of a tool: others are refused, which agents would otherwise believe to have an effect."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _are_known(cls, arguments: Any) -> Any:
        for name in arguments if isinstance(arguments, dict) else ():
            if name not in cls.model_fields:
                others = "; other fields are keys of `options`" if "options" in cls.model_fields else ""
                known = f"known are {', '.join(cls.model_fields)}{others}" if cls.model_fields else "there are none"
                raise ValueError(f"{name}: Unknown argument; {known}")
        return arguments


def build_server(service: Service) -> MCPServer[Any]:
    """Return a server whose tools use the service."""
    image_field = Field(description=LOCAL_IMAGE if service.with_files else REMOTE_IMAGE)
    Image = Annotated[str, image_field]  # noqa: N806

    async def run(context: Context[Any], options: Options | None, **fields: Any) -> Content:
        given = {name: value for name, value in fields.items() if value not in (None, "")}
        chosen = (options or NONE).model_dump(exclude_none=True)
        for name in chosen.keys() & given.keys():
            raise ToolError(f"options.{name}: This tool sets it by its own arguments; leave it out of `options`.")
        return await service.run(context, chosen | given)

    async def edit(
        context: Context[Any], image: Image, prompt: Prompt, strength: Strength = None, options: Options | None = None
    ) -> Content:
        """Change an image by a prompt: a model for edits follows it as an instruction, others repaint the image.

        With `strength`, the image is repainted in any case.
        """
        async with service.client(context) as client:
            is_edit = strength is None and "edit" in (await _model(client, (options or NONE).model)).tasks
        words = {"instruction": prompt} if is_edit else {"prompt": prompt, "strength": strength}
        return await run(context, options, image=image, **words)

    async def inpaint(
        context: Context[Any],
        image: Image,
        prompt: Prompt,
        mask: Annotated[str | None, image_field] = None,
        thing: Annotated[
            str | None,
            Field(description="In place of a mask, words for a thing in the image, for models with `masks` by text."),
        ] = None,
        strength: Strength = None,
        options: Options | None = None,
    ) -> Content:
        """Regenerate a part of an image: the white pixels of a mask of its size, or the thing that words name.

        All other pixels stay the same.
        """
        if bool(mask) is bool(thing):
            raise ToolError("Give either `mask` or `thing`.")
        found = mask or {"text": thing}
        return await run(context, options, image=image, prompt=prompt, strength=strength, mask=found)

    async def outpaint(
        context: Context[Any],
        image: Image,
        prompt: Prompt,
        left: Annotated[int, Field(ge=0, description="Pixels to add on the left.")] = 0,
        top: Annotated[int, Field(ge=0)] = 0,
        right: Annotated[int, Field(ge=0)] = 0,
        bottom: Annotated[int, Field(ge=0)] = 0,
        options: Options | None = None,
    ) -> Content:
        """Extend an image on its sides. Its own pixels stay the same."""
        margins = {"left": left, "top": top, "right": right, "bottom": bottom}
        if not any(margins.values()):
            raise ToolError("Give at least one of `left`, `top`, `right`, `bottom`.")
        return await run(context, options, image=image, prompt=prompt, outpaint=margins)

    async def upscale(
        context: Context[Any],
        image: Image,
        factor: Annotated[int, Field(description="How many times wider and higher: 2 or 4.")] = 2,
        prompt: Prompt = "",
        options: Options | None = None,
    ) -> Content:
        """Make an image larger, with new details."""
        return await run(context, options, image=image, upscale=factor, prompt=prompt)

    async def variations(
        context: Context[Any],
        image: Image,
        strength: Strength = 0.6,
        prompt: Prompt = "",
        options: Options | None = None,
    ) -> Content:
        """Make images that resemble an image: four, unless `num_images` asks for another number."""
        options = options or NONE
        options = options.model_copy(update={"num_images": options.num_images or 4})
        return await run(context, options, image=image, strength=strength, prompt=prompt)

    async def controls(
        context: Context[Any],
        image: Image,
        type: Annotated[str, Field(description="One of the model's `controls`, such as canny, depth or pose.")],
        prompt: Prompt,
        scale: Annotated[float, Field(ge=0, description="How strongly the result follows them.")] = 1.0,
        options: Options | None = None,
    ) -> Content:
        """Make a new image that follows the edges, the depth or the pose of an image (ControlNet)."""
        followed = [{"type": type, "image": image, "scale": scale}]
        return await run(context, options, prompt=prompt, controls=followed)

    async def get(context: Context[Any], job: JobId) -> Content:
        """Return the state of a job and, when it has succeeded, its images."""
        async with service.client(context) as client:
            return await content_of(client, await client.get_job(job))

    async def models(context: Context[Any]) -> list[dict[str, Any]]:
        """List the models: their tasks, sizes, controls, LoRAs and upscale factors."""
        async with service.client(context) as client:
            return [_summary(model) for model in await client.list_models()]

    tools = [_tool(function) for function in (edit, inpaint, outpaint, upscale, variations, controls, get, models)]
    return MCPServer("img2img", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING", tools=tools)


def _tool(function: Callable[..., Any]) -> Tool:
    """Return a tool whose arguments are those of a function, and no others."""
    tool = Tool.from_function(function, structured_output=False)
    lenient = tool.fn_metadata.arg_model
    strict: type[ArgModelBase] = type(lenient.__name__, (Arguments, lenient), {"__doc__": None})
    tool.fn_metadata.arg_model = strict
    tool.parameters = strict.model_json_schema(by_alias=True)
    return tool


async def _model(client: AsyncClient, name: str | None) -> Model:
    """Return the named model, or the default one. Raises ToolError."""
    found = await client.list_models()
    for model in found:
        if model.default if not name else name in (model.name, *getattr(model, "aliases", ())):
            return model
    raise ToolError(f"There is no model {name or 'yet'}; there are: {', '.join(model.name for model in found)}.")


def _summary(model: Model) -> dict[str, Any]:
    names = ("name", "description", "default", "tasks", "native_size", "max_size", "controls", "masks", "mask_words")
    return {name: getattr(model, name) for name in (*names, "loras", "upscales")}
