"""Process all photos of a folder as one batch, and save each result when it is done.

python examples/batch_of_photos.py photos paintings "a watercolor painting"
"""

import asyncio
import sys
from pathlib import Path

from img2img import AsyncClient
from img2img.client import ClientError, Job, JobFailed

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


async def main(source: str, target: str, prompt: str) -> None:
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    photos = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in SUFFIXES)
    requests = [{"image": photo, "name": photo.stem, "prompt": prompt, "strength": 0.6, "seed": 1} for photo in photos]
    failed = 0
    async with AsyncClient() as client:
        # Either all jobs are created, or none: an error names the photo, as `items.3.image`, and its file.
        batch = await client.batches.submit(requests)
        # After a lost connection, `stream_events` with this id yields all ended jobs again.
        print(f"batch {batch.id}", file=sys.stderr)
        async for event in client.batches.stream_events(batch):
            if not isinstance(event, Job):
                continue
            name = event.batch.name
            try:
                [result] = event.raise_for_status().images
            except JobFailed as error:
                failed += 1
                print(f"{name}: {error}", file=sys.stderr)
                continue
            path = folder / f"{name}.png"
            path.write_bytes(await client.download(result))
            print(path)
    sys.exit(failed > 0)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except (ClientError, OSError) as error:
        sys.exit(str(error))
