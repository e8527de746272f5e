"""Regenerate part of an image. Needs Pillow.

python examples/inpaint.py photo.jpg "a tree"
"""

import sys
from pathlib import Path

from PIL import Image

from img2img import Client

EXAMPLE = Path(__file__).parent / "rendered.png"


def main(image: str = str(EXAMPLE), prompt: str = "a house in a field") -> None:
    photo = Image.open(image)
    width, height = photo.size
    # White pixels are regenerated, black pixels are returned unchanged.
    mask = Image.new("L", photo.size, 0)
    mask.paste(255, (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    with Client() as client:
        job = client.inpaint(photo, mask, prompt=prompt, mask_blur=2, seed=1)
        job = client.wait(job).raise_for_status()
        Path("inpainted.png").write_bytes(client.download(job))
    print("inpainted.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
