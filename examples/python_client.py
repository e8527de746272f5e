"""Submit an image, print the progress of the job, and save the result.

python examples/python_client.py photo.jpg "a watercolor painting"
"""

import sys
from pathlib import Path

from img2img import Client
from img2img.client import Job, ProgressEvent, QueuedEvent

EXAMPLE = Path(__file__).parent / "input.png"


def main(image: str = str(EXAMPLE), prompt: str = "a watercolor painting of a red house by a lake") -> None:
    # The URL and the API key can also come from IMG2IMG_URL and IMG2IMG_API_KEY.
    with Client() as client:
        job = client.submit(image=image, prompt=prompt, strength=0.6, seed=1)
        for event in client.stream_events(job):
            match event:
                case QueuedEvent():
                    print(f"queued, {event.queue_position} ahead")
                case ProgressEvent():
                    print(f"{event.progress.fraction:.0%}")
                case Job():
                    job = event.raise_for_status()
        for result in job.images:
            path = Path(f"result-{result.index}.png")
            path.write_bytes(client.download(result))
            print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
