"""Write the merges of CLIP's tokenizer from the package open_clip_torch: `python -m scripts.clip_merges FILE`.

FILE is `open_clip/bpe_simple_vocab_16e6.txt.gz`. It has the merges of a larger vocabulary; CLIP uses the first 48,894.
"""

import gzip
import sys
from pathlib import Path

from img2img.worker.pipelines.loading.clip_tokenizer import MERGES

# 49,408 tokens: 2 x 256 bytes (within and at the end of a word), the merges, and two special tokens.
COUNT = 49_408 - 2 * 256 - 2


def main(source: Path) -> None:
    """Write the first merges, without the comment in the first line."""
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")[1 : COUNT + 1]
    MERGES.write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
