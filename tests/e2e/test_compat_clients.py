"""The third-party clients `openai` and `webuiapi`, unmodified, against the whole service."""

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


def random_image(mode: str = "RGB", seed: int = 5) -> Image.Image:
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
    def test_edit_gives_the_images_of_its_job(self, ai: openai.OpenAI, client: httpx.Client) -> None:
        extra = {"seed": 3, "num_inference_steps": 4, "strength": 0.5}
        response = ai.images.edit(image=file(random_image()), prompt="a house", n=2, extra_body=extra)
        assert response.data is not None
        images = [decoded(image.b64_json) for image in response.data]
        [job] = client.get("/jobs?limit=1").json()["jobs"]
        assert job["request"]["prompt"] == "a house"
        for index, image in enumerate(images):
            expected = Image.open(io.BytesIO(client.get(f"/jobs/{job['id']}/images/{index}").content))
            assert np.array_equal(np.asarray(image), np.asarray(expected))

    def test_edit_changes_only_transparent_pixels_of_the_mask(self, ai: openai.OpenAI) -> None:
        box = (10, 12, 40, 50)
        original, mask = random_image(), with_hole(Image.new("RGB", (SIZE, SIZE)), box)
        for files in ({"image": file(original), "mask": file(mask)}, {"image": file(with_hole(original, box))}):
            response = ai.images.edit(prompt="a tree", extra_body={"num_inference_steps": 3}, **files)
            assert response.data is not None
            result, hole = np.asarray(decoded(response.data[0].b64_json)), np.asarray(mask.getchannel("A")) == 0
            assert (result[~hole] == np.asarray(original)[~hole]).all()
            assert (result[hole] != np.asarray(original)[hole]).mean() > 0.5

    def test_edit_and_variation_accept_urls_formats_and_sizes(self, ai: openai.OpenAI) -> None:
        extra = {"num_inference_steps": 2}
        response = ai.images.edit(image=[file(random_image())], prompt="x", response_format="url", extra_body=extra)
        assert response.data is not None
        assert response.data[0].url is not None
        assert httpx.get(response.data[0].url).headers["content-type"] == "image/png"
        response = ai.images.edit(image=file(random_image()), prompt="x", output_format="webp", extra_body=extra)
        assert response.data is not None
        assert decoded(response.data[0].b64_json).format == "WEBP"
        response = ai.images.create_variation(image=file(random_image()), n=1, size="64x64", extra_body=extra)  # type: ignore[arg-type]
        assert response.data is not None
        assert decoded(response.data[0].b64_json).size == (64, 64)

    def test_edit_streams_partial_images_and_the_result(self, ai: openai.OpenAI) -> None:
        stream = ai.images.edit(
            image=file(random_image()),
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

    def test_model_is_found(self, ai: openai.OpenAI) -> None:
        [model] = ai.models.list()
        assert ai.models.retrieve(model.id) == model
        with pytest.raises(openai.NotFoundError, match="There is no model"):
            ai.models.retrieve("gpt-image-1")

    def test_list_returns_the_models(self, ai: openai.OpenAI, client: httpx.Client) -> None:
        assert {model.id for model in ai.models.list()} == {m["name"] for m in client.get("/models").json()["models"]}

    @pytest.mark.parametrize(
        ("fields", "param", "message"),
        [
            ({"quality": "best"}, "quality", "'auto'"),
            ({"background": "pink"}, "background", "'auto', 'opaque' or 'transparent'"),
            ({"input_fidelity": "exact"}, "input_fidelity", "'low' or 'high'"),
            ({"size": "100x100"}, "size", "multiple of 8"),
            ({"model": "dall-e-2"}, "model", "should be one of"),
            ({"mask": file(random_image())}, "mask", "should be transparent"),
            ({"image": [file(random_image()), file(random_image())]}, "image[]", "takes one image, not 2"),
            ({"extra_body": {"strength": 2}}, "strength", "less than or equal to 1"),
            ({"n": 9}, "n", "less than or equal to 8"),
        ],
    )
    def test_unsupported_parameter_is_refused(
        self, ai: openai.OpenAI, fields: dict[str, object], param: str, message: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            ai.images.edit(**{"image": file(random_image()), "prompt": "x", **fields})  # type: ignore[call-overload]
        assert refused.value.param == param
        assert message in str(refused.value)


class TestWebUI:
    def test_img2img_gives_the_images_of_its_job(self, webui: webuiapi.WebUIApi, client: httpx.Client) -> None:
        response = webui.img2img(
            images=[random_image()],
            prompt="a house",
            seed=5,
            batch_size=2,
            width=SIZE,
            height=SIZE,
            denoising_strength=0.5,
        )
        assert response.info["all_seeds"] == [5, 6]
        job = client.get(f"/jobs/{response.info['job_id']}").json()
        assert (job["request"]["scheduler"], job["request"]["guidance_scale"]) == ("euler_a", 7.0)
        for index, image in enumerate(response.images):
            expected = Image.open(io.BytesIO(client.get(f"/jobs/{job['id']}/images/{index}").content))
            assert np.array_equal(np.asarray(image), np.asarray(expected))

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (("DPM++ SDE", "Karras"), ("dpmpp_sde", "karras")),
            (("DPM++ 3M SDE", "Automatic"), ("dpmpp_3m_sde", "exponential")),
            (("DPM++ 2M", "SGM Uniform"), ("dpmpp_2m", "sgm_uniform")),
            (("Euler a", "Normal"), ("euler_a", "normal")),
        ],
    )
    def test_samplers_and_schedules(
        self,
        webui: webuiapi.WebUIApi,
        client: httpx.Client,
        names: tuple[str, str],
        expected: tuple[str, str],
    ) -> None:
        fields = {"steps": 2, "width": SIZE, "height": SIZE, "prompt": "a (house:1.2) BREAK a tree"}
        response = webui.img2img(images=[random_image()], sampler_name=names[0], scheduler=names[1], **fields)
        request = client.get(f"/jobs/{response.info['job_id']}").json()["request"]
        assert (request["scheduler"], request["sigmas"]) == expected

    def test_extras_and_maps(self, webui: webuiapi.WebUIApi) -> None:
        enlarged = webui.extra_single_image(random_image(), upscaler_1="Lanczos", upscaling_resize=2).image
        assert enlarged.size == (2 * SIZE, 2 * SIZE)
        [name] = [one["name"] for one in webui.get_upscalers() if one["name"].endswith(" x2")]
        assert webui.extra_single_image(random_image(), upscaler_1=name).image.size == (2 * SIZE, 2 * SIZE)
        [image] = webui.controlnet_detect([random_image()], module="canny").images
        assert image.size == (SIZE, SIZE)

    def test_parameters_of_a_result_are_read(self, webui: webuiapi.WebUIApi) -> None:
        image = webui.img2img(
            images=[random_image()], prompt="a (red:1.2) house", seed=5, steps=2, width=SIZE, height=SIZE
        ).image
        info = webui.png_info(image).info
        assert info.startswith("a (red:1.2) house\nSteps: 2, Sampler: Euler a,")
        assert "Seed: 5, Size: 64x64" in info

    def test_text_alone_is_refused_with_a_reason(self, webui: webuiapi.WebUIApi) -> None:
        with pytest.raises(RuntimeError, match="Images cannot be made of text alone"):
            webui.txt2img(prompt="a house")

    @pytest.mark.parametrize("full_res", [True, False])
    @pytest.mark.parametrize("invert", [0, 1])
    def test_mask_limits_the_changed_pixels(self, webui: webuiapi.WebUIApi, full_res: bool, invert: int) -> None:
        original, mask = random_image(), Image.new("L", (SIZE, SIZE))
        mask.paste(255, (10, 12, 40, 50))
        response = webui.img2img(
            images=[original],
            mask_image=mask,
            inpaint_full_res=full_res,
            inpainting_mask_invert=invert,
            inpainting_fill=1 - invert,
            width=SIZE,
            height=SIZE,
        )
        changed = (np.asarray(mask) > 0) != bool(invert)
        result = np.asarray(response.image)
        assert (result[~changed] == np.asarray(original)[~changed]).all()
        assert (result[changed] != np.asarray(original)[changed]).mean() > 0.4

    def test_interrupt_ends_a_job_in_progress(self, webui: webuiapi.WebUIApi) -> None:
        responses: list[webuiapi.WebUIApiResult] = []

        def work() -> None:
            parameters = {"steps": 150, "denoising_strength": 1.0, "n_iter": 8, "width": 128, "height": 128}
            responses.append(webui.img2img(images=[random_image()], **parameters))

        worker = threading.Thread(target=work)
        worker.start()
        progress = []
        while not progress or (progress[-1]["state"]["sampling_step"] == 0 and worker.is_alive()):
            progress.append(webui.get_progress())
            time.sleep(0.05)
        assert 0 < progress[-1]["progress"] < 1
        webui.interrupt()
        worker.join()
        assert responses[0].images == []
        assert responses[0].info["interrupted"]
        assert webui.get_progress()["progress"] == 0

    def test_lists_and_options_have_the_model(self, webui: webuiapi.WebUIApi, client: httpx.Client) -> None:
        [model] = client.get("/models").json()["models"]
        assert [entry["title"] for entry in webui.get_sd_models()] == [model["name"]]
        assert "DPM++ 2M" in [sampler["name"] for sampler in webui.get_samplers()]
        assert webui.get_options()["sd_model_checkpoint"] == model["name"]
        webui.set_options({"sd_model_checkpoint": model["name"]})
        assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "other"}).status_code == 422
        assert webui.get_scripts() == {"txt2img": [], "img2img": ["sd upscale"]}
        assert [one["name"] for one in webui.get_upscalers()][:2] == ["None", "Lanczos"]
        assert webui.get_prompt_styles() == webui.get_sd_vae() == webui.get_face_restorers() == []
        assert webui.get_memory()["ram"]["total"] > 0
        assert webui.controlnet_version() >= 2
        assert webui.controlnet_model_list() == []
        assert "canny" in webui.controlnet_module_list()

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"sampler_name": "DPM adaptive"}, "should be one of: DPM++ 2M"),
            ({"restore_faces": True}, "restore_faces"),
            ({"styles": ["cinematic"]}, "styles"),
            ({"subseed_strength": 1.5}, "subseed_strength"),
            ({"script_name": "Outpainting mk2"}, "script_name"),
            ({"alwayson_scripts": {"ADetailer": {"args": [{"ad_model": "face.pt"}]}}}, "alwayson_scripts"),
            ({"override_settings": {"sd_vae": "other"}}, "sd_vae"),
            (
                {"controlnet_units": [webuiapi.ControlNetUnit(module="canny", model="canny", image=random_image())]},
                "has no ControlNet",
            ),
        ],
    )
    def test_unsupported_parameter_is_refused(
        self, webui: webuiapi.WebUIApi, fields: dict[str, object], message: str
    ) -> None:
        with pytest.raises(RuntimeError) as refused:
            webui.img2img(images=[random_image()], **{"width": SIZE, "height": SIZE, **fields})
        status, text = refused.value.args
        assert status == 422
        assert message in text
