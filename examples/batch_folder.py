"""Process all images of a folder at once; the worker runs them in one batch.

python examples/batch_folder.py photos paintings "a watercolor painting"
"""

import asyncio
import sys
from pathlib import Path

from img2img import AsyncClient
from img2img.client import ClientError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


async def process(client: AsyncClient, image: Path, folder: Path, prompt: str) -> bool:
    try:
        [png] = await client.generate(image=image, prompt=prompt, strength=0.6, seed=1)
    except ClientError as error:
        print(f"{image}: {error}", file=sys.stderr)
        return False
    result = folder / f"{image.stem}.png"
    result.write_bytes(png)
    print(result)
    return True


async def main(source: str, target: str, prompt: str) -> None:
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    images = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in SUFFIXES)
    async with AsyncClient() as client:
        succeeded = await asyncio.gather(*(process(client, image, folder, prompt) for image in images))
    sys.exit(not all(succeeded))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
