"""Other people's clients, unmodified, against the whole service: `openai` and `webuiapi`."""

import base64
import io
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image

SIZE = 64


def picture(mode: str = "RGB", seed: int = 5) -> Image.Image:
    channels = len(mode)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, channels), np.uint8), mode)


def file(image: Image.Image, name: str = "a.png") -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return name, buffer.getvalue()


def decoded(b64_json: str | None) -> Image.Image:
    assert b64_json
    image = Image.open(io.BytesIO(base64.b64decode(b64_json)))
    image.load()
    return image


def with_hole(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    holed = image.convert("RGBA")
    holed.paste((0, 0, 0, 0), box)
    return holed


@pytest.fixture
def ai(client: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as api:
        yield api


@pytest.fixture
def webui(client: httpx.Client) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(host="127.0.0.1", port=client.base_url.port, sampler="Euler a", steps=4)


class TestOpenAI:
    def test_an_edit_is_the_job_that_our_own_api_makes(self, ai: openai.OpenAI, client: httpx.Client) -> None:
        own = {"seed": 3, "num_inference_steps": 4, "strength": 0.5}
        answer = ai.images.edit(image=file(picture()), prompt="a house", n=2, extra_body=own)
        assert answer.data is not None
        theirs = [decoded(image.b64_json) for image in answer.data]
        [job] = client.get("/jobs?limit=1").json()["jobs"]
        assert job["request"]["prompt"] == "a house"
        for index, image in enumerate(theirs):
            ours = Image.open(io.BytesIO(client.get(f"/jobs/{job['id']}/images/{index}").content))
            assert np.array_equal(np.asarray(image), np.asarray(ours))

    def test_what_is_transparent_in_the_mask_is_painted(self, ai: openai.OpenAI) -> None:
        box = (10, 12, 40, 50)
        sent, mask = picture(), with_hole(Image.new("RGB", (SIZE, SIZE)), box)
        for files in ({"image": file(sent), "mask": file(mask)}, {"image": file(with_hole(sent, box))}):
            answer = ai.images.edit(prompt="a tree", extra_body={"num_inference_steps": 3}, **files)
            assert answer.data is not None
            got, hole = np.asarray(decoded(answer.data[0].b64_json)), np.asarray(mask.getchannel("A")) == 0
            assert (got[~hole] == np.asarray(sent)[~hole]).all()
            assert (got[hole] != np.asarray(sent)[hole]).mean() > 0.5

    def test_urls_formats_and_variations(self, ai: openai.OpenAI) -> None:
        few = {"num_inference_steps": 2}
        answer = ai.images.edit(image=[file(picture())], prompt="x", response_format="url", extra_body=few)
        assert answer.data is not None
        assert answer.data[0].url is not None
        assert httpx.get(answer.data[0].url).headers["content-type"] == "image/png"
        answer = ai.images.edit(image=file(picture()), prompt="x", output_format="webp", extra_body=few)
        assert answer.data is not None
        assert decoded(answer.data[0].b64_json).format == "WEBP"
        answer = ai.images.create_variation(image=file(picture()), n=1, size="64x64", extra_body=few)  # type: ignore[arg-type]
        assert answer.data is not None
        assert decoded(answer.data[0].b64_json).size == (64, 64)

    def test_streams_tell_partial_images_and_then_the_result(self, ai: openai.OpenAI) -> None:
        stream = ai.images.edit(
            image=file(picture()),
            prompt="x",
            stream=True,
            partial_images=2,
            extra_body={"num_inference_steps": 150, "strength": 1},
        )
        events = list(stream)
        assert [event.type for event in events][-1] == "image_edit.completed"
        partial = [event for event in events if event.type == "image_edit.partial_image"]
        assert 1 <= len(partial) <= 2
        assert [event.partial_image_index for event in partial] == list(range(len(partial)))
        assert all(decoded(event.b64_json).format == "PNG" for event in events)

    def test_models_are_listed(self, ai: openai.OpenAI, client: httpx.Client) -> None:
        assert {model.id for model in ai.models.list()} == {m["name"] for m in client.get("/models").json()["models"]}

    @pytest.mark.parametrize(
        ("fields", "param", "message"),
        [
            ({"quality": "high"}, "quality", "'auto'"),
            ({"background": "transparent"}, "background", "'auto' or 'opaque'"),
            ({"input_fidelity": "high"}, "input_fidelity", "Extra inputs"),
            ({"size": "100x100"}, "width", "multiple of 8"),
            ({"model": "dall-e-2"}, "model", "should be one of"),
            ({"mask": file(picture())}, "mask", "should be transparent"),
            ({"image": [file(picture()), file(picture())]}, "image", "Exactly one image"),
            ({"extra_body": {"strength": 2}}, "strength", "less than or equal to 1"),
            ({"n": 9}, "n", "less than or equal to 8"),
        ],
    )
    def test_what_it_cannot_express_is_refused(
        self, ai: openai.OpenAI, fields: dict[str, object], param: str, message: str
    ) -> None:
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            ai.images.edit(**{"image": file(picture()), "prompt": "x", **fields})  # type: ignore[call-overload]
        assert refused.value.param == param
        assert message in str(refused.value)


class TestWebUI:
    def test_img2img_is_the_job_that_our_own_api_makes(self, webui: webuiapi.WebUIApi, client: httpx.Client) -> None:
        answer = webui.img2img(
            images=[picture()], prompt="a house", seed=5, batch_size=2, width=SIZE, height=SIZE, denoising_strength=0.5
        )
        assert answer.info["all_seeds"] == [5, 6]
        job = client.get(f"/jobs/{answer.info['job_id']}").json()
        assert (job["request"]["scheduler"], job["request"]["guidance_scale"]) == ("euler_a", 7.0)
        for index, image in enumerate(answer.images):
            ours = Image.open(io.BytesIO(client.get(f"/jobs/{job['id']}/images/{index}").content))
            assert np.array_equal(np.asarray(image), np.asarray(ours))

    @pytest.mark.parametrize("full_res", [True, False])
    @pytest.mark.parametrize("invert", [0, 1])
    def test_masks(self, webui: webuiapi.WebUIApi, full_res: bool, invert: int) -> None:
        sent, mask = picture(), Image.new("L", (SIZE, SIZE))
        mask.paste(255, (10, 12, 40, 50))
        answer = webui.img2img(
            images=[sent],
            mask_image=mask,
            inpaint_full_res=full_res,
            inpainting_mask_invert=invert,
            inpainting_fill=1 - invert,
            width=SIZE,
            height=SIZE,
        )
        painted = (np.asarray(mask) > 0) != bool(invert)
        got = np.asarray(answer.image)
        assert (got[~painted] == np.asarray(sent)[~painted]).all()
        assert (got[painted] != np.asarray(sent)[painted]).mean() > 0.4

    def test_progress_and_interrupt(self, webui: webuiapi.WebUIApi) -> None:
        answers: list[webuiapi.WebUIApiResult] = []

        def work() -> None:
            many = {"steps": 150, "denoising_strength": 1.0, "n_iter": 8, "width": 128, "height": 128}
            answers.append(webui.img2img(images=[picture()], **many))

        worker = threading.Thread(target=work)
        worker.start()
        seen = []
        while not seen or (seen[-1]["state"]["sampling_step"] == 0 and worker.is_alive()):
            seen.append(webui.get_progress())
            time.sleep(0.05)
        assert 0 < seen[-1]["progress"] < 1
        webui.interrupt()
        worker.join()
        assert answers[0].images == []
        assert answers[0].info["interrupted"]
        assert webui.get_progress()["progress"] == 0

    def test_lists_and_options(self, webui: webuiapi.WebUIApi, client: httpx.Client) -> None:
        [model] = client.get("/models").json()["models"]
        assert [entry["title"] for entry in webui.get_sd_models()] == [model["name"]]
        assert "DPM++ 2M" in [sampler["name"] for sampler in webui.get_samplers()]
        assert webui.get_options()["sd_model_checkpoint"] == model["name"]
        webui.set_options({"sd_model_checkpoint": model["name"]})
        assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "other"}).status_code == 422
        assert webui.get_scripts() == {"txt2img": [], "img2img": []}

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"sampler_name": "DPM adaptive"}, "should be one of: DDIM"),
            ({"restore_faces": True}, "restore_faces"),
            ({"styles": ["cinematic"]}, "styles"),
            ({"inpainting_fill": 2}, "inpainting_fill"),
            ({"subseed_strength": 0.5}, "subseed_strength"),
            ({"script_name": "SD upscale"}, "script_name"),
            ({"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True, "module": "canny"}]}}}, "controls"),
            ({"override_settings": {"sd_vae": "other"}}, "override_settings"),
            ({"resize_mode": 3}, "resize_mode"),
        ],
    )
    def test_what_it_cannot_express_is_refused(
        self, webui: webuiapi.WebUIApi, fields: dict[str, object], message: str
    ) -> None:
        with pytest.raises(RuntimeError) as refused:
            webui.img2img(images=[picture()], **{"width": SIZE, "height": SIZE, **fields})
        status, text = refused.value.args
        assert status == 422
        assert message in text
