"""The tools: each is a task of `POST /img2img`."""

from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, ConfigDict, Field

from img2img import __version__
from img2img.client import AsyncClient, Model

from .jobs import Content, Service, content_of

INSTRUCTIONS = """Tools that change images with diffusion models. They return images, and for each a reference such as
/jobs/ID/images/0, which is accepted wherever a tool takes an image. `models` lists the models and their tasks."""

REMOTE_IMAGE = "PNG, JPEG or WebP as base64 or a data: URI, or a reference such as /jobs/ID/images/0."
LOCAL_IMAGE = "Path of a PNG, JPEG or WebP file, a data: URI, or a reference such as /jobs/ID/images/0."

Prompt = Annotated[str, Field(description="What the result should show.")]
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


def build_server(service: Service) -> MCPServer[Any]:
    """Return a server whose tools use the service."""
    server: MCPServer[Any] = MCPServer("img2img", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING")
    image_field = Field(description=LOCAL_IMAGE if service.with_files else REMOTE_IMAGE)
    Image = Annotated[str, image_field]  # noqa: N806

    async def run(context: Context[Any], options: Options, **fields: Any) -> Content:
        return await service.run(context, **options.model_dump(), **fields)

    async def edit(
        context: Context[Any], image: Image, prompt: Prompt, strength: Strength = None, options: Options = NONE
    ) -> Content:
        """Change an image by a prompt: a model for edits follows it as an instruction, others repaint the image.

        With `strength`, the image is repainted in any case.
        """
        async with service.client(context) as client:
            is_edit = strength is None and "edit" in (await _model(client, options.model)).tasks
        words = {"instruction": prompt} if is_edit else {"prompt": prompt, "strength": strength}
        return await run(context, options, image=service.image(image), **words)

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
        options: Options = NONE,
    ) -> Content:
        """Regenerate a part of an image: the white pixels of a mask of its size, or the thing that words name.

        All other pixels stay the same.
        """
        if (mask is None) is (thing is None):
            raise ToolError("Give either `mask` or `thing`.")
        found = {"text": thing} if mask is None else service.image(mask)
        return await run(context, options, image=service.image(image), prompt=prompt, strength=strength, mask=found)

    async def outpaint(
        context: Context[Any],
        image: Image,
        prompt: Prompt,
        left: Annotated[int, Field(ge=0, description="Pixels to add on the left.")] = 0,
        top: Annotated[int, Field(ge=0)] = 0,
        right: Annotated[int, Field(ge=0)] = 0,
        bottom: Annotated[int, Field(ge=0)] = 0,
        options: Options = NONE,
    ) -> Content:
        """Extend an image on its sides. Its own pixels stay the same."""
        margins = {"left": left, "top": top, "right": right, "bottom": bottom}
        return await run(context, options, image=service.image(image), prompt=prompt, outpaint=margins)

    async def upscale(
        context: Context[Any],
        image: Image,
        factor: Annotated[int, Field(description="How many times wider and higher: 2 or 4.")] = 2,
        prompt: Prompt = "",
        options: Options = NONE,
    ) -> Content:
        """Make an image larger, with new details."""
        return await run(context, options, image=service.image(image), upscale=factor, prompt=prompt)

    async def variations(
        context: Context[Any],
        image: Image,
        strength: Strength = 0.6,
        prompt: Prompt = "",
        options: Options = NONE,
    ) -> Content:
        """Make images that resemble an image: four, unless `num_images` asks for another number."""
        options = options.model_copy(update={"num_images": options.num_images or 4})
        return await run(context, options, image=service.image(image), strength=strength, prompt=prompt)

    async def controls(
        context: Context[Any],
        image: Image,
        type: Annotated[str, Field(description="One of the model's `controls`, such as canny, depth or pose.")],
        prompt: Prompt,
        scale: Annotated[float, Field(ge=0, description="How strongly the result follows them.")] = 1.0,
        options: Options = NONE,
    ) -> Content:
        """Make a new image that follows the edges, the depth or the pose of an image (ControlNet)."""
        followed = [{"type": type, "image": service.image(image), "scale": scale}]
        return await run(context, options, prompt=prompt, controls=followed)

    async def get(context: Context[Any], job: Annotated[str, Field(description="Id of a job.")]) -> Content:
        """Return the state of a job and, when it has succeeded, its images."""
        async with service.client(context) as client:
            return await content_of(client, await client.get_job(job))

    async def models(context: Context[Any]) -> list[dict[str, Any]]:
        """List the models: their tasks, sizes, controls, LoRAs and upscale factors."""
        async with service.client(context) as client:
            return [_summary(model) for model in await client.list_models()]

    for tool in (edit, inpaint, outpaint, upscale, variations, controls, get, models):
        server.add_tool(tool, structured_output=False)
    return server


async def _model(client: AsyncClient, name: str | None) -> Model:
    """Return the named model, or the default one. Raises ToolError."""
    found = await client.list_models()
    for model in found:
        if model.default if name is None else name in (model.name, *getattr(model, "aliases", ())):
            return model
    raise ToolError(f"There is no model {name or 'yet'}; there are: {', '.join(model.name for model in found)}.")


def _summary(model: Model) -> dict[str, Any]:
    names = ("name", "description", "default", "tasks", "native_size", "max_size", "controls", "masks", "mask_words")
    return {name: getattr(model, name) for name in (*names, "loras", "upscales")}
