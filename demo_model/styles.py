"""The styles: each converts a painted canvas to a photo, watercolor, pencil sketch, oil painting or pixel art."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .canvas import Canvas
from .painting import paint
from .palette import FloatArray
from .scenes import Scene, Style

PAPER = np.array([0.98, 0.97, 0.94], np.float32)


def render(scene: Scene, style: Style, size: int = 128) -> Image.Image:
    """Render a scene in a style as an RGB image of size x size pixels."""
    return _image(_STYLE[style](paint(scene, size), scene))


def _photo(canvas: Canvas, scene: Scene) -> FloatArray:
    """Soft light: a glow around sun or moon, slightly darker corners, more contrast."""
    image = canvas.image()
    y, x = _grid(canvas.size)
    brightness = 0.12 if scene.time == "night" else 0.25
    glow = brightness * np.exp(-((x - scene.sun_x) ** 2 + (y - scene.sun_y_now) ** 2) / 0.03)
    corners = 1.0 - 0.35 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    lit = (image + (1.0 - image) * glow[..., None]) * corners[..., None]
    return np.asarray(lit * lit * (3 - 2 * lit) * 0.5 + lit * 0.5, np.float32)


def _watercolor(canvas: Canvas, scene: Scene) -> FloatArray:
    """Pale pigment on white paper with blotches and darker edges, ending before the border."""
    image = _blurred(canvas.image(), 0.008 * canvas.size)
    pigment = (1.0 - image) * (0.62 + 0.35 * _smooth_noise(scene.seed, 6, canvas.size)[..., None])
    dried = _blurred(canvas.outline()[..., None].repeat(3, 2), 0.006 * canvas.size)
    pigment = pigment * (1.0 + 0.8 * dried)
    y, x = _grid(canvas.size)
    to_rim = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    wobble = 0.06 + 0.05 * (_smooth_noise(scene.seed + 1, 12, canvas.size) - 0.5)
    covered = np.clip((to_rim - wobble) / 0.015, 0.0, 1.0)[..., None]
    return np.asarray(np.clip(PAPER - pigment * covered, 0.0, 1.0), np.float32)


def _pencil(canvas: Canvas, _scene: Scene) -> FloatArray:
    """Graphite on white paper: outlines, and hatching that is denser where the scene is darker."""
    tone = _blurred(canvas.image(), 0.006 * canvas.size) @ np.array([0.3, 0.59, 0.11], np.float32)
    row, column = np.indices((canvas.size, canvas.size))
    # Diagonals in a fixed pattern four pixels apart, like latents, so that one latent value means one shade.
    wide, middle, dense = ((row + column) % 4 < 1), ((row + column) % 4 < 2), ((row - column) % 4 < 2)
    shade = 0.32 * (wide & (tone < 0.72)) + 0.32 * (middle & ~wide & (tone < 0.5)) + 0.3 * (dense & (tone < 0.26))
    ink = np.maximum(canvas.outline() * 0.85, _blurred(shade[..., None].astype(np.float32).repeat(3, 2), 0.5)[..., 0])
    return np.repeat((0.97 * (1.0 - ink))[..., None], 3, axis=2).astype(np.float32)


def _oil(canvas: Canvas, scene: Scene) -> FloatArray:
    """Thick short strokes of saturated paint: level in sky and water, slanted on land."""
    base = _saturated(canvas.image(), 1.35)
    size, rng = canvas.size, random.Random(f"oil {scene.seed}")
    image = _image(base)
    draw = ImageDraw.Draw(image)
    spacing, half_length, width = 0.045, 0.045, max(round(0.035 * size), 1)
    spots = [
        (min(max(column * spacing + rng.uniform(-0.015, 0.015), 0.0), 0.999),
         min(max(row * spacing + rng.uniform(-0.015, 0.015), 0.0), 0.999))
        for row in range(24) for column in range(24)
    ]  # fmt: skip
    rng.shuffle(spots)
    for x, y in spots:
        colour = base[int(y * size), int(x * size)]
        shade = rng.choice((-0.09, 0.0, 0.11))
        angle = rng.uniform(-0.3, 0.3) if y < scene.horizon else rng.uniform(-1.1, -0.6)
        dx, dy = half_length * math.cos(angle), half_length * math.sin(angle)
        ink = tuple(round(255 * min(max(float(c) + shade, 0.0), 1.0)) for c in colour)
        draw.line([((x - dx) * size, (y - dy) * size), ((x + dx) * size, (y + dy) * size)], fill=ink, width=width)
    painted = np.asarray(image, np.float32) / 255.0
    # Blend with the drawing, so that small objects such as doors stay recognisable.
    return _blurred(0.62 * painted + 0.38 * base, 0.4)


def _pixel(canvas: Canvas, _scene: Scene) -> FloatArray:
    """32 x 32 large square pixels of few colours."""
    small = _image(_saturated(canvas.image(), 1.25)).resize((32, 32), Image.Resampling.BOX)
    few = np.asarray(np.round(np.asarray(small, np.float32) / 255.0 * 5) / 5, np.float32)
    big = _image(few).resize((canvas.size, canvas.size), Image.Resampling.NEAREST)
    return np.asarray(big, np.float32) / 255.0


_STYLE: dict[Style, Callable[[Canvas, Scene], FloatArray]] = {
    "photo": _photo,
    "watercolor": _watercolor,
    "pencil": _pencil,
    "oil": _oil,
    "pixel": _pixel,
}


def _grid(size: int) -> tuple[FloatArray, FloatArray]:
    """Return rows and columns of pixel centres as fractions of the side; they broadcast to (size, size)."""
    steps = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return steps[:, None], steps[None, :]


def _smooth_noise(seed: int, cells: int, size: int) -> FloatArray:
    """Return interpolated random values of a cells x cells grid, (size, size) in [0, 1]."""
    coarse = np.random.default_rng(seed).random((cells, cells), dtype=np.float32)
    smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth, np.float32), 0.0, 1.0)


def _saturated(image: FloatArray, factor: float) -> FloatArray:
    grey = image.mean(axis=2, keepdims=True)
    return np.asarray(np.clip(grey + factor * (image - grey), 0.0, 1.0), np.float32)


def _blurred(image: FloatArray, radius_px: float) -> FloatArray:
    return np.asarray(_image(image).filter(ImageFilter.GaussianBlur(radius_px)), np.float32) / 255.0


def _image(image: FloatArray) -> Image.Image:
    return Image.fromarray(np.round(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8))
