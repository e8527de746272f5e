"""Make an image with the edges of another one, and save the edges, too. Needs a model with a ControlNet for edges.

python examples/controlnet.py photo.jpg "a house in winter"
"""

import sys
from pathlib import Path

from img2img import Client

EXAMPLE = Path(__file__).parent / "rendered.png"


def main(image: str = str(EXAMPLE), prompt: str = "a house in winter") -> None:
    with Client() as client:
        edges = client.wait(client.control_map(image, "canny")).raise_for_status()
        Path("edges.png").write_bytes(client.download(edges))
        # The map is already on the service, and `preprocess: False` uses it as it is.
        control = {"type": "canny", "image": edges.images[0], "preprocess": False, "scale": 0.8, "end": 0.7}
        job = client.wait(client.submit(prompt=prompt, controls=[control], seed=1)).raise_for_status()
        Path("controlled.png").write_bytes(client.download(job))
    print("edges.png", "controlled.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
