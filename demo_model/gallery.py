"""The images of the tasks in the documentation, made by the whole service: `python -m img2img.demo_model.gallery`."""

from __future__ import annotations

import argparse
import io
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from img2img.app.settings import ApiSettings
from img2img.app.supervisor.supervisor import free_port, running
from img2img.client import Client, Job

from .companions import maps
from .dataset import SIZE
from .scenes import HELD_OUT_SEED, Scene, Style, sample_scene
from .styles import render

GALLERY = Path(__file__).parent.parent / "docs" / "images" / "gallery"
GAP = 8
# Pixels of a side at which images are shown, and of the text below them.
SHOWN, TEXT_SIZE, LINES = 256, 15, 3
# Pixels of a side of the squares behind transparent pixels, before images are enlarged.
SQUARE = 8
SCENES = {"house": HELD_OUT_SEED + 2267, "lake": HELD_OUT_SEED + 3463, "example": HELD_OUT_SEED + 41}
STEPS = 25


# An image with its caption.
Captioned = tuple[Image.Image, str]


class ServiceClient:
    """Sends jobs to a running service and returns their images."""

    def __init__(self, client: Client, tick: Callable[[], None]) -> None:
        self._client = client
        self._tick = tick

    def make(self, **fields: Any) -> list[Image.Image]:
        """Return the images of one job with these fields of `POST /img2img`; images are Pillow images."""
        usual = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "scheduler": "dpmpp_2m", "seed": 1}
        job = self._client.submit(**(usual | fields))
        return self._images(job)

    def map_of(self, image: Image.Image, kind: str) -> Image.Image:
        """Return the control map that the service makes of an image."""
        return self._images(self._client.control_map(image, kind))[0]

    def mask_of(self, image: Image.Image, words: str) -> Image.Image:
        """Return the mask of the thing that words name."""
        return self._images(self._client.find_mask(image, text=words, grow=2))[0]

    def _images(self, job: Job) -> list[Image.Image]:
        for _ in self._client.stream_events(job):
            self._tick()
        return [_opaque(Image.open(io.BytesIO(png))) for png in self._client.download_images(job)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(TASKS)}; default: all")
    names = parser.parse_args().names or list(TASKS)
    if unknown := set(names) - set(TASKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    GALLERY.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="img2img-") as data_dir:
        settings = ApiSettings(
            host="127.0.0.1", port=free_port(), data_dir=Path(data_dir), model="demo", redis_url="", store_url=""
        )
        with running(settings) as service, Client(settings.local_url) as client:
            tasks = ServiceClient(client, service.tick)
            for name in track(names, "making the gallery"):
                _side_by_side(TASKS[name](tasks)).save(GALLERY / f"{name}.png", optimize=True)


def variations(tasks: ServiceClient) -> list[Captioned]:
    """A rendered image and four variations."""
    photo = _rendered("house")
    wishes = (
        ("a watercolor painting of a yellow house in summer by day", 0.5, 2),
        ("an oil painting of a yellow house in autumn by day", 0.6, 3),
        ("a photo of a yellow house in winter by day", 0.5, 1),
        ("a photo of a yellow house in summer at night", 0.6, 6),
    )
    made = [
        (tasks.make(image=photo, prompt=prompt, strength=strength, seed=seed)[0], f"{prompt}; strength {strength}")
        for prompt, strength, seed in wishes
    ]
    return [(photo, "input: a rendered image"), *made]


def inpainting(tasks: ServiceClient) -> list[Captioned]:
    """A mask over the house, and two results."""
    photo, scene = _rendered("house"), _scene("house")
    assert scene.house is not None
    house = scene.house
    mask = Image.new("L", photo.size)
    top = house.y - house.wall_height - house.roof_height
    box = (house.x - 0.65 * house.width, top - 0.04, house.x + 0.65 * house.width, house.y + 0.03)
    ImageDraw.Draw(mask).rectangle([SIZE * edge for edge in box], fill=255)
    prompts = (("a photo of a purple house in summer by day", 1), ("a photo of trees in summer by day", 1))
    made = [
        (tasks.make(image=photo, mask=mask, prompt=prompt, guidance_scale=2.0, seed=seed)[0], prompt)
        for prompt, seed in prompts
    ]
    return [(photo, "input: a rendered image"), (mask.convert("RGB"), "mask"), *made]


def words(tasks: ServiceClient) -> list[Captioned]:
    """Masks by words, and results with them."""
    photo = _rendered("house")
    wishes = {"the house": "a photo of a purple house in summer by day", "the sky": "a photo of a house at sunset"}
    made = []
    for thing, prompt in wishes.items():
        [image] = tasks.make(image=photo, mask={"text": thing, "grow": 2}, prompt=prompt, guidance_scale=2.0, seed=1)
        made += [(tasks.mask_of(photo, thing), f"mask: {thing}"), (image, prompt)]
    return [(photo, "input: a rendered image"), *made]


def outpainting(tasks: ServiceClient) -> list[Captioned]:
    """Padding on the left and on the right."""
    photo = _rendered("house")
    [wide] = tasks.make(
        image=photo,
        outpaint={"left": 64, "right": 64},
        prompt="a photo of a house in summer by day",
        guidance_scale=2.0,
        seed=1,
    )
    return [(photo, "input: a rendered image"), (wide, "64 pixels more on the left and on the right")]


def edge_to_image(tasks: ServiceClient) -> list[Captioned]:
    photo = _rendered("lake")
    edges = tasks.map_of(photo, "canny")
    control = {"type": "canny", "image": edges, "preprocess": False}
    prompts = (
        ("an oil painting of a red house in autumn at sunset", 1),
        ("a photo of a blue house in winter by day", 1),
    )
    return [(photo, "input: a rendered image"), (edges, "its edges"), *_controlled(tasks, control, prompts)]


def depth_to_image(tasks: ServiceClient) -> list[Captioned]:
    photo = _rendered("lake")
    depth = tasks.map_of(photo, "depth")
    control = {"type": "depth", "image": depth, "preprocess": False}
    prompts = (("a watercolor painting of a house in autumn by day", 1), ("a photo of a house in winter by day", 1))
    return [(photo, "input: a rendered image"), (depth, "its depth map"), *_controlled(tasks, control, prompts)]


def segmentation_to_image(tasks: ServiceClient) -> list[Captioned]:
    regions = Image.fromarray(maps.segmentation(_scene("example")))
    control = {"type": "segmentation", "image": regions, "preprocess": False}
    prompts = (
        ("a photo of a white house in summer by day", 1),
        ("a watercolor painting of a red house in autumn by day", 1),
        ("a photo of a purple house in winter at sunset", 1),
    )
    return [(regions, "input: coloured regions"), *_controlled(tasks, control, prompts)]


def sketch_to_image(tasks: ServiceClient) -> list[Captioned]:
    """A few strokes by hand."""
    sketch = Image.new("RGB", (SIZE, SIZE))
    draw = ImageDraw.Draw(sketch)
    strokes = (
        [(0, 66), (40, 62), (90, 68), (128, 64)],
        [(36, 106), (36, 76), (84, 76), (84, 106), (36, 106)],
        [(30, 77), (60, 52), (90, 77)],
        [(54, 106), (54, 88), (66, 88), (66, 106)],
        [(104, 108), (104, 92)],
        [(92, 94), (104, 60), (116, 94), (92, 94)],
    )
    for stroke in strokes:
        draw.line(stroke, "white", 4, joint="curve")
    draw.ellipse((14, 14, 36, 36), outline="white", width=4)
    control = {"type": "scribble", "image": sketch, "preprocess": False}
    prompts = (
        ("a photo of a red house with pine trees in summer by day", 1),
        ("an oil painting of a blue house at sunset", 1),
    )
    return [(sketch, "input: a few strokes"), *_controlled(tasks, control, prompts)]


def image_prompt(tasks: ServiceClient) -> list[Captioned]:
    """The style of an image given by another image."""
    photo = _rendered("house")
    made = [(photo, "input: a rendered image")]
    wishes: tuple[tuple[Style, dict[str, Any], int], ...] = (
        ("watercolor", {"season": "autumn"}, 1),
        ("photo", {"time": "night"}, 1),
    )
    for style, changes, seed in wishes:
        example = _rendered("lake", style, **changes)
        prompts = [{"image": example, "scale": 1.0}]
        [result] = tasks.make(image=photo, prompt="a house", image_prompts=prompts, strength=0.65, seed=seed)
        made += [(example, "image prompt"), (result, "result")]
    return made


def lora(tasks: ServiceClient) -> list[Captioned]:
    """A style that the model was not trained on."""
    photo, prompt = _rendered("house"), "a blueprint of a house with trees by a lake"
    loras = [{"name": "blueprint", "scale": 1.0}]
    [result] = tasks.make(image=photo, prompt=prompt, loras=loras, strength=0.45, guidance_scale=1.5, seed=1)
    return [(photo, "input: a rendered image"), (result, f"{prompt}; LoRA blueprint")]


def edit(tasks: ServiceClient) -> list[Captioned]:
    photo = _rendered("house")
    instructions = (
        ("make it night", 1),
        ("add snow", 1),
        ("paint the house blue", 1),
        ("turn it into a watercolor", 1),
    )
    guidance = {"guidance_scale": 3.0, "image_guidance_scale": 1.2}
    made = [(tasks.make(image=photo, instruction=wish, seed=seed, **guidance)[0], wish) for wish, seed in instructions]
    return [(photo, "input: a rendered image"), *made]


def backgrounds(tasks: ServiceClient) -> list[Captioned]:
    """A background that is removed, and others in its place."""
    photo = _rendered("house")
    # At strength 0 the image itself loses its background.
    [cut_out] = tasks.make(image=photo, background="transparent", strength=0)
    prompts = (
        ("a photo of a house in winter by day", 2.0),
        ("an oil painting of a house by the sea at sunset", 4.0),
    )
    made = [
        (tasks.make(image=photo, background={"prompt": prompt}, guidance_scale=guidance)[0], prompt)
        for prompt, guidance in prompts
    ]
    return [(photo, "input: a rendered image"), (cut_out, "transparent"), *made]


def super_resolution(tasks: ServiceClient) -> list[Captioned]:
    """A quarter of the image: original, resized by Pillow's bicubic filter, and upscaled by 4."""
    photo = _rendered("lake")
    quarter = (32, 48, 96, 112)
    large = tasks.make(image=photo, prompt="a photo of a house", upscale=4, guidance_scale=1.0)[0]
    bicubic = photo.resize(large.size, Image.Resampling.BICUBIC)
    cut = tuple(4 * edge for edge in quarter)
    original = photo.crop(quarter).resize((SHOWN, SHOWN), Image.Resampling.NEAREST)
    return [
        (original, "input: a quarter of a rendered image"),
        (bicubic.crop(cut), "enlarged by Pillow"),
        (large.crop(cut), "enlarged by the upscaler"),
    ]


TASKS: dict[str, Callable[[ServiceClient], list[Captioned]]] = {
    "variations": variations,
    "inpainting": inpainting,
    "words": words,
    "outpainting": outpainting,
    "edges": edge_to_image,
    "depth": depth_to_image,
    "segmentation": segmentation_to_image,
    "sketch": sketch_to_image,
    "image-prompt": image_prompt,
    "lora": lora,
    "edit": edit,
    "background": backgrounds,
    "super-resolution": super_resolution,
}


def _scene(name: str) -> Scene:
    """Return the scene by day in summer, so that changes are visible."""
    return replace(sample_scene(SCENES[name]), time="day", season="summer")


def _rendered(name: str, style: Style = "photo", **changes: Any) -> Image.Image:
    return render(replace(_scene(name), **changes), style, SIZE)


def _controlled(tasks: ServiceClient, control: Any, prompts: tuple[tuple[str, int], ...]) -> list[Captioned]:
    """Return an image for each prompt and its seed."""
    return [(tasks.make(controls=[control], prompt=prompt, seed=seed)[0], prompt) for prompt, seed in prompts]


def _side_by_side(images: list[Captioned]) -> Image.Image:
    """Join images on white with a gap, each with its caption below."""
    shown = [(_enlarged(image), caption) for image, caption in images]
    width = sum(image.width for image, _ in shown) + GAP * (len(shown) - 1)
    sheet = Image.new("RGB", (width, SHOWN + GAP + LINES * (TEXT_SIZE + 4)), "white")
    draw, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE), 0
    for image, caption in shown:
        sheet.paste(image, (left, 0))
        lines = textwrap.wrap(caption, int(image.width / (TEXT_SIZE * 0.53)))
        assert len(lines) <= LINES, caption
        draw.multiline_text((left, SHOWN + GAP // 2), "\n".join(lines), "#333", font, spacing=3)
        left += image.width + GAP
    return sheet


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image in RGB; transparent pixels show a checkerboard."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    board = Image.new("RGBA", image.size, "white")
    draw = ImageDraw.Draw(board)
    for left in range(0, image.width, SQUARE):
        for top in range(left % (2 * SQUARE), image.height, 2 * SQUARE):
            draw.rectangle((left, top, left + SQUARE - 1, top + SQUARE - 1), fill="#ccc")
    return Image.alpha_composite(board, image).convert("RGB")


def _enlarged(image: Image.Image) -> Image.Image:
    """Return an image with the height at which it is shown."""
    return image.resize((image.width * SHOWN // image.height, SHOWN), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
