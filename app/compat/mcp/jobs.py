"""Jobs of tool calls: from images as agents write them to images as their programs show them."""

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ImageContent, TextContent

from img2img.client import AsyncClient, ClientError, Job, ProgressEvent, QueuedEvent, is_image_reference
from img2img.client.images import map_images

Content = list[ImageContent | TextContent]

# Begins of references to images that the service has. These would be base64 by chance.
REFERENCE_PATHS = ("/jobs/", "/uploads/")
# A mask that is the transparency of the image.
ALPHA = "alpha"


@dataclass(frozen=True)
class Service:
    """The service that tool calls use.

    Args:
        url: Its URL.
        api_key: API key of all calls, for a server with one user. Others send their keys with each call: then the
            environment of the process has none.
        with_files: Whether images can be paths of files on this machine.
    """

    url: str
    api_key: str | None
    with_files: bool

    @asynccontextmanager
    async def client(self, context: Context[Any]) -> AsyncIterator[AsyncClient]:
        """A client with the API key of the caller. Its errors become those of the tool, with the same sentences."""
        headers = context.headers or {}
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")
        async with AsyncClient(self.url, api_key=self.api_key or key) as client:
            try:
                yield client
            except (ClientError, OSError) as error:
                raise ToolError(str(error)) from None

    def image(self, image: Any) -> str:
        """Return an image in a form that the client takes. Raises ToolError.

        The client reads files that are named by their paths, so that nothing else may pass where images are no files.
        """
        if not isinstance(image, str):
            raise ToolError(f"An image is text, not {type(image).__name__}.")
        if image[:5].lower() == "data:":
            # The client knows these by small letters.
            return f"data:{image[5:]}"
        if self.with_files or is_image_reference(image) or image == ALPHA:
            return image
        if image.startswith(REFERENCE_PATHS):
            raise ToolError(f"{image[:100]} is no reference to an image; one is /jobs/ID/images/0.")
        if "://" in image:
            raise ToolError(f"URLs are not read: send the image as base64 in place of {image[:100]}.")
        return f"data:;base64,{image}"

    async def run(self, context: Context[Any], fields: Mapping[str, Any]) -> Content:
        """Submit a job, report its progress until its end, and return its images.

        The job is cancelled if the call is. Fields that are None or empty text count as not given.
        """
        given = map_images({name: value for name, value in fields.items() if value != ""}, self.image)
        async with self.client(context) as client:
            job = await client.submit(**given)
            try:
                job = await _followed(client, job, context)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await client.cancel(job)
                raise
            return await content_of(client, job.raise_for_status())


async def _followed(client: AsyncClient, job: Job, context: Context[Any]) -> Job:
    """Return the job after its end. Its events are notifications of progress."""
    async for event in client.stream_events(job):
        if isinstance(event, QueuedEvent):
            await context.report_progress(0, None, f"queued, {event.queue_position or 0} jobs ahead")
        elif isinstance(event, ProgressEvent):
            progress = event.progress
            await context.report_progress(progress.step, progress.steps or None, f"step {progress.step}")
        elif isinstance(event, Job):
            job = event
    return job


async def content_of(client: AsyncClient, job: Job) -> Content:
    """Return the images of a job, and a text with its id, its state, and references that later calls can use."""
    lines = [f"Job {job.id}: {job.status}."]
    if job.error:
        lines.append(job.error.message)
    elif not job.has_ended:
        lines.append(f"{job.progress.fraction:.0%} done.")
    images: list[ImageContent] = []
    for image in job.images:
        lines.append(f"Image {image.index}: {image.url}, {image.width}x{image.height}, seed {image.seed}.")
        data = b64encode(await client.download(image)).decode()
        images.append(ImageContent(type="image", data=data, mime_type="image/png"))
    return [*images, TextContent(type="text", text="\n".join(lines))]
