"""Stock diffusers in a LitServe server with dynamic batching, as in the documentation of LitServe:

https://lightning.ai/docs/litserve/features/batching

    python -m benchmarks.litserve_server FOLDER MAX_BATCH_SIZE THREADS PORT {predict|edits}
"""

import base64
import sys
import time
from collections.abc import Mapping
from typing import Any

import litserve as ls
import litserve.server
import torch

from benchmarks.sides import Stock
from benchmarks.workload import OWN_FIELDS, Job, can_share_a_call
from img2img.domain.spec import Img2ImgSpec

# Long enough for requests that arrive together, short compared to the seconds of a batch.
BATCH_TIMEOUT_S = 0.05


class StockAPI(ls.LitAPI):
    """The stock pipeline, for requests that subclasses read."""

    def __init__(self, folder: str, threads: int, **batching: Any) -> None:
        super().__init__(**batching)
        self.folder = folder
        self.threads = threads

    def setup(self, device: str) -> None:  # noqa: ARG002
        torch.set_num_threads(self.threads)
        self.stock = Stock.from_folder(self.folder)

    def batch(self, inputs: list[Job]) -> list[tuple[list[int], list[Job]]]:
        """Group the requests that can share a pipeline call; the groups run one after another."""
        return [(indices, [inputs[i] for i in indices]) for indices in can_share_a_call(inputs).values()]

    def predict(self, x: list[tuple[list[int], list[Job]]]) -> list[tuple[list[int], list[bytes]]]:
        return [(indices, self.stock.call(jobs)) for indices, jobs in x]

    def unbatch(self, output: list[tuple[list[int], list[bytes]]]) -> list[bytes]:
        by_index = {index: png for indices, pngs in output for index, png in zip(indices, pngs, strict=True)}
        return [by_index[index] for index in sorted(by_index)]


class PredictAPI(StockAPI):
    """`POST /predict` with a job as JSON."""

    def decode_request(self, request: dict[str, Any]) -> Job:
        return Job(Img2ImgSpec.model_validate(request["spec"]), base64.b64decode(request["image"]))

    def encode_response(self, output: bytes) -> dict[str, str]:
        return {"image": base64.b64encode(output).decode()}


class EditsAPI(StockAPI):
    """OpenAI's `POST /v1/images/edits` with a form."""

    def __init__(self, folder: str, threads: int, **batching: Any) -> None:
        super().__init__(folder, threads, api_path="/v1/images/edits", **batching)

    def decode_request(self, request: ls.Request) -> Job:
        # LitServe passes the form of a request here.
        form: Mapping[str, Any] = request
        width, _, height = form["size"].partition("x")
        fields = {name: form[name] for name in ("model", "prompt", *OWN_FIELDS)}
        spec = Img2ImgSpec.model_validate_strings({**fields, "image": "0" * 64, "width": width, "height": height})
        return Job(spec, form["image"].file.read())

    def encode_response(self, output: bytes) -> dict[str, Any]:
        return {"created": int(time.time()), "data": [{"b64_json": base64.b64encode(output).decode()}]}


APIS = {"predict": PredictAPI, "edits": EditsAPI}

if __name__ == "__main__":
    folder, max_batch_size, threads, port, name = sys.argv[1:]
    api = APIS[name](folder, int(threads), max_batch_size=int(max_batch_size), batch_timeout=BATCH_TIMEOUT_S)
    # LitServe 0.2.19 does not start where `mcp` is installed without `fastmcp`, as here.
    litserve.server._MCP_AVAILABLE = False
    server = ls.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")
