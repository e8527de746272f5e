"""The third-party clients `huggingface_hub` and `replicate`, unmodified, against the whole service."""

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
import replicate
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from replicate.exceptions import ReplicateError
from replicate.helpers import FileOutput

from tests.support.images import encoded

SIZE = 64
# Steps of a job that is still running when it is looked at.
LONG = {"num_inference_steps": 150, "num_images": 8, "prompt_strength": 1.0, "width": 128, "height": 128}


def random_png(seed: int = 5) -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)))


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def name_of(client: httpx.Client) -> str:
    [model] = client.get("/models").json()["models"]
    return str(model["name"])


class TestHuggingFace:
    @pytest.fixture
    def hub(self, client: httpx.Client) -> InferenceClient:
        return InferenceClient(model=f"{client.base_url}/hf/{name_of(client)}", token="none", timeout=100)

    def test_image_to_image_gives_the_image_of_its_job(self, hub: InferenceClient, client: httpx.Client) -> None:
        target = {"width": 64, "height": 96}
        fields = {"num_inference_steps": 4, "strength": 0.5, "seed": 3}
        image = hub.image_to_image(random_png(), "a house", negative_prompt="rain", target_size=target, **fields)
        [job] = client.get("/jobs?limit=1").json()["jobs"]
        request = job["request"]
        assert (request["prompt"], request["negative_prompt"], request["strength"]) == ("a house", "rain", 0.5)
        assert image.size == (64, 96)
        expected = opened(client.get(f"/jobs/{job['id']}/images/0").content)
        assert np.array_equal(np.asarray(image), np.asarray(expected))

    def test_image_alone_is_sent_as_bytes(self, hub: InferenceClient, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(random_png())
        for image in (random_png(), tmp_path / "a.png"):
            assert hub.image_to_image(image).size == (SIZE, SIZE)

    def test_sentence_of_the_service_is_shown(self, hub: InferenceClient) -> None:
        with pytest.raises(HfHubHTTPError, match="strength: Input should be less than or equal to 1") as refused:
            hub.image_to_image(random_png(), strength=2)
        assert refused.value.request_id


class TestReplicate:
    @pytest.fixture
    def api(self, client: httpx.Client) -> replicate.Client:
        return replicate.Client("none", base_url=f"{client.base_url}/replicate")

    def test_run_returns_files(self, api: replicate.Client, client: httpx.Client) -> None:
        image = io.BytesIO(random_png())
        fields = {"image": image, "prompt": "a house", "num_inference_steps": 4, "prompt_strength": 0.5, "seed": 7}
        outputs = api.run(f"img2img/{name_of(client)}", input={**fields, "num_outputs": 2})
        assert [type(output) for output in outputs] == [FileOutput, FileOutput]
        [job] = client.get("/jobs?limit=1").json()["jobs"]
        assert (job["request"]["prompt"], job["request"]["strength"]) == ("a house", 0.5)
        for index, output in enumerate(outputs):
            assert output.read() == client.get(f"/jobs/{job['id']}/images/{index}").content

    def test_run_of_a_version_with_a_data_url(self, api: replicate.Client, client: httpx.Client) -> None:
        model = api.models.get(f"img2img/{name_of(client)}")
        assert [version.id for version in model.versions.list()] == [model.latest_version.id]
        outputs = api.run(
            f"{model.id}:{model.latest_version.id}",
            input={"image": io.BytesIO(random_png()), "num_inference_steps": 2},
            file_encoding_strategy="base64",
        )
        assert opened(outputs[0].read()).size == (SIZE, SIZE)

    def test_run_goes_on_after_its_wait_has_run_out(self, api: replicate.Client, client: httpx.Client) -> None:
        fields = LONG | {"image": io.BytesIO(random_png()), "num_images": 2, "num_inference_steps": 60}
        outputs = api.run(f"img2img/{name_of(client)}", input=fields, wait=1)
        assert len(outputs) == 2
        assert opened(outputs[1].read()).size == (128, 128)

    def test_progress_and_cancel(self, api: replicate.Client, client: httpx.Client) -> None:
        prediction = api.predictions.create(
            model=f"img2img/{name_of(client)}", input=LONG | {"image": io.BytesIO(random_png())}
        )
        while prediction.progress is None or prediction.progress.current == 0:
            prediction.reload()
            assert prediction.status in ("starting", "processing")
        assert prediction.progress.total == 8 * 150
        prediction.cancel()
        prediction.wait()
        assert (prediction.status, prediction.output) == ("canceled", None)
        assert prediction.id in [found.id for found in api.predictions.list()]
        assert api.predictions.get(prediction.id).status == "canceled"

    def test_wait_and_results_as_inputs(self, api: replicate.Client, client: httpx.Client) -> None:
        uploaded = api.files.create(io.BytesIO(random_png()))
        assert api.files.get(uploaded.id) == uploaded
        assert uploaded.id in [file.id for file in api.files.list()]
        model = f"img2img/{name_of(client)}"
        first = api.predictions.create(model=model, input={"image": uploaded.urls["get"], "num_inference_steps": 2})
        first.wait()
        assert first.status == "succeeded"
        [listed] = [found for found in api.predictions.list() if found.id == first.id]
        second = api.predictions.create(model=model, input={"image": listed.output[0], "num_inference_steps": 2})
        second.wait()
        assert second.status == "succeeded"
        assert api.files.delete(uploaded.id)

    def test_sentence_of_the_service_is_shown(self, api: replicate.Client, client: httpx.Client) -> None:
        with pytest.raises(ReplicateError, match=r"input\.prompt_strength: Input should be less than or equal to 1"):
            api.run(f"img2img/{name_of(client)}", input={"image": io.BytesIO(random_png()), "prompt_strength": 2})
