"""The safety checker flags the finished images that the stock pipeline flags, and never blackens one."""

import io
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from img2img.domain.conditioning import InpaintRegion, Padding
from img2img.domain.model_card import SafetyChecker
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Task
from img2img.domain.spec import JobSpec
from img2img.domain.tiling import Tiling
from img2img.errors import Cancelled
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.errors import StartupError
from img2img.worker.images.png import read_metadata
from img2img.worker.pipelines.memory import tensor_sizes
from img2img.worker.pipelines.model import Model, describe_model, load_model
from img2img.worker.runner import JobRunner, RenderedImage, Rendering
from img2img.worker.runtime.model_loader import warm_up
from tests.support.engines import run_functions, running_engine
from tests.support.images import encoded, gradient
from tests.support.models.tiny_models import tiny_sd, tiny_unet
from tests.support.models.tiny_safety_checkers import FLAG_ALL, FLAG_NONE, WEIGHTS, set_threshold, tiny_sd_with_checker
from tests.support.specs import make_spec

SIDE = 64
PIXELS = np.random.default_rng(4).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
PNG = encoded(Image.fromarray(PIXELS))
MASK = encoded(Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16)))
INPUTS = {sha256(png).hexdigest(): png for png in (PNG, MASK)}
IMAGE, MASK_HASH = INPUTS


def job(**changes: object) -> JobSpec:
    return make_spec(
        **{"image": IMAGE, "width": SIDE, "height": SIDE, "num_inference_steps": 4, "strength": 0.5, **changes}
    )


JOBS = [job(seed=seed, strength=strength) for seed, strength in enumerate((0.25, 0.5, 0.75, 1.0) * 3)]


@contextmanager
def running(slots: int = 16) -> Iterator[tuple[Engine, JobRunner]]:
    engine = Engine(slots=slots)
    thread = threading.Thread(target=engine.run)
    thread.start()
    yield engine, JobRunner(engine)
    engine.shut_down()
    thread.join()


def start(
    runner: JobRunner, model: Model, spec: JobSpec, indices: Sequence[int] = (0,)
) -> tuple[Rendering, threading.Event]:
    rendering, ended = runner.prepare(spec, INPUTS, indices, model), threading.Event()
    rendering.start(ended.set)
    return rendering, ended


def render(model: Model, spec: JobSpec) -> list[RenderedImage]:
    with running() as (_engine, runner):
        rendering, ended = start(runner, model, spec, range(spec.num_images))
        ended.wait()
        return rendering.render()


def pixels_of(image: RenderedImage) -> np.ndarray:
    assert image.png is not None
    return np.asarray(Image.open(io.BytesIO(image.png)))


class Stock:
    """The stock pipeline, and the scores by which its checker decides."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)

    def flags(self, spec: JobSpec) -> bool:
        [flag] = self._call(spec, "np").nsfw_content_detected
        return bool(flag)

    def pixels(self, spec: JobSpec) -> np.ndarray:
        checker, self.pipeline.safety_checker = self.pipeline.safety_checker, None
        image = self._call(spec, "pil").images[0]
        self.pipeline.safety_checker = checker
        return np.asarray(image)

    def score(self, spec: JobSpec) -> float:
        checker, processor = self.pipeline.safety_checker, self.pipeline.feature_extractor
        with torch.no_grad():
            prepared = processor(Image.fromarray(self.pixels(spec)), return_tensors="pt").pixel_values
            embedding = checker.visual_projection(checker.vision_model(prepared)[1])
            return float(torch.cosine_similarity(embedding, checker.concept_embeds[:1])[0])

    def _call(self, spec: JobSpec, output_type: str) -> object:
        return self.pipeline(
            prompt=spec.prompt,
            image=Image.fromarray(PIXELS),
            strength=spec.strength,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator().manual_seed(spec.seed),
            output_type=output_type,
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose checker flags about half of the images of JOBS."""
    folder = tiny_sd_with_checker(tmp_path_factory.mktemp("model"), threshold=0)
    stock = Stock(folder)
    set_threshold(folder, float(np.median([stock.score(spec) for spec in JOBS])))
    return folder


def load(folder: Path, mode: str | None = None, **changes: object) -> Model:
    config = ModelConfig.model_validate({"name": "tiny", "source": str(folder), "safety_checker": mode, **changes})
    return load_model(config, device="cpu")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose checker flags every image."""
    return tiny_sd_with_checker(tmp_path_factory.mktemp("strict"), threshold=FLAG_ALL)


@pytest.fixture(scope="module")
def by_mode(strict: Path) -> dict[str, Model]:
    return {mode: load(strict, mode) for mode in SafetyChecker}


@pytest.fixture
def damaged(strict: Path, tmp_path: Path) -> Path:
    """Return a copy of the model, for a test to change."""
    return shutil.copytree(strict, tmp_path / "damaged")


def test_checker_flags_what_the_stock_pipeline_flags_in_shared_calls(folder: Path) -> None:
    stock = Stock(folder)
    expected = [stock.flags(spec) for spec in JOBS]
    assert 0 < sum(expected) < len(JOBS)
    model = load(folder, "report")
    with running() as (engine, runner):
        started = [start(runner, model, spec) for spec in JOBS]
        for _, ended in started:
            ended.wait()
        threads = [threading.Thread(target=lambda r=r: results.update({r: r.render()})) for r, _ in started]
        results: dict[Rendering, list[RenderedImage]] = {}
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    images = [results[rendering][0] for rendering, _ in started]
    assert [read_metadata(image.png or b"").get("flagged", False) for image in images] == expected
    for spec, image in zip(JOBS, images, strict=True):
        assert np.abs(pixels_of(image).astype(int) - stock.pixels(spec)).max() <= 1
    assert engine.rows_run["check"] == len(JOBS)


def test_check_calls_of_several_jobs_are_merged(folder: Path) -> None:
    checker = load(folder, "report").safety_checker
    assert checker is not None
    images = [np.full((SIDE, SIDE, 3), value, np.uint8) for value in range(0, 250, 25)]
    prepared = [checker.prepare(pixels) for pixels in images]
    alone = [checker.is_flagged(one) for one in prepared]
    engine = Engine(slots=16)
    assert run_functions([lambda _t, one=one: checker.is_flagged(one) for one in prepared], engine) == alone
    assert (engine.calls_run["check"], engine.rows_run["check"]) == (1, len(images))


def test_flagged_images_are_withheld_and_others_are_delivered(folder: Path) -> None:
    stock, several = Stock(folder), job(num_images=8, strength=0.75)
    expected = [stock.flags(several.model_copy(update={"seed": several.seed + index})) for index in range(8)]
    assert 0 < sum(expected) < 8
    images = render(load(folder, "on"), several)
    assert [image.png is None for image in images] == expected
    assert not any(read_metadata(image.png).get("flagged") for image in images if image.png)


TASKS = {
    "strength-0": job(strength=0),
    "inpaint": job(
        task=Task.INPAINT,
        region=InpaintRegion(mask=MASK_HASH, blur=0, margins=Padding(), canvas=(SIDE, SIDE), box=(0, 0, SIDE, SIDE)),
    ),
    "upscale": job(
        task=Task.UPSCALE, upscale=2, tiling=Tiling(upscaler=False, side=SIDE, overlap=16, multiple=8, work=1.0)
    ),
    "control-map": job(task=Task.CONTROL_MAP, type="canny"),
}


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)
def test_images_of_every_task_are_checked(by_mode: dict[str, Model], spec: JobSpec) -> None:
    assert render(by_mode["on"], spec) == [RenderedImage(0, None)]
    [reported] = render(by_mode["report"], spec)
    [unchecked] = render(by_mode["off"], spec)
    assert np.array_equal(pixels_of(reported), pixels_of(unchecked))
    assert pixels_of(reported).any()
    assert (read_metadata(reported.png or b"")["flagged"], read_metadata(unchecked.png or b"").get("flagged")) == (
        True,
        None,
    )


def test_images_are_checked_while_no_slot_is_free(by_mode: dict[str, Model]) -> None:
    with running(slots=1) as (engine, runner):
        rendering, ended = start(runner, by_mode["on"], job())
        ended.wait()
        # Takes the only slot, for much longer than the check.
        other, other_ended = start(
            runner, by_mode["on"], job(num_inference_steps=150, strength=1.0, num_images=8), range(8)
        )
        assert rendering.render() == [RenderedImage(0, None)]
        assert not other_ended.is_set()
        assert engine.calls_run["check"] == 1
        other.stop()
        other_ended.wait()


def test_job_that_is_stopped_during_its_check_is_cancelled(by_mode: dict[str, Model]) -> None:
    with running() as (_engine, runner):
        rendering, ended = start(runner, by_mode["on"], job())
        ended.wait()
        rendering.stop()
        with pytest.raises(Cancelled):
            rendering.render()


@pytest.mark.parametrize(("mode", "has_preview"), [("on", False), ("report", True), ("off", True)])
def test_images_that_may_be_withheld_have_no_preview(by_mode: dict[str, Model], mode: str, has_preview: bool) -> None:
    model = by_mode[mode]
    model.fit_preview()
    rendering = JobRunner(Engine(slots=1)).prepare(job(), INPUTS, [0], model)
    rendering.tasks[0].latents = torch.zeros(1, 4, SIDE // 2, SIDE // 2)
    assert (rendering.preview() is not None) == has_preview


def test_checker_is_warmed_up(strict: Path) -> None:
    model, shapes = load(strict), []
    assert model.safety_checker is not None
    model.safety_checker.module.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(kwargs["clip_input"].shape), with_kwargs=True
    )
    with running_engine() as engine:
        warm_up(model, engine)
    # Then two rows, to find out whether calls can be merged.
    assert shapes[0] == (1, 3, 32, 32)


def test_checker_of_a_model_is_on_by_default(strict: Path, by_mode: dict[str, Model]) -> None:
    assert load(strict).card.safety_checker is SafetyChecker.ON
    assert {mode: model.card.safety_checker for mode, model in by_mode.items()} == {m: m for m in SafetyChecker}


def test_checker_that_is_off_is_not_loaded(damaged: Path) -> None:
    (damaged / WEIGHTS).write_bytes(b"")
    assert load(damaged, "off").safety_checker is None
    with pytest.raises(StartupError, match=r"safety_checker"):
        load(damaged)


def test_model_without_checker_is_not_checked_unless_another_one_is_named(strict: Path, tmp_path: Path) -> None:
    plain = tiny_sd(tmp_path / "plain")
    assert load(plain).card.safety_checker is SafetyChecker.OFF
    for mode in ("on", "report"):
        with pytest.raises(StartupError, match=r"no safety checker; set `safety_checker_source` .* \"off\"$"):
            load(plain, mode)
    source = {"source": str(strict), "subfolder": "safety_checker"}
    assert render(load(plain, safety_checker_source=source), job()) == [RenderedImage(0, None)]
    with pytest.raises(StartupError, match=r"^cannot load model 'tiny': `safety_checker_source`: "):
        load(plain, "on", safety_checker_source={"source": str(strict / "vae")})


def test_checker_of_another_class_is_refused(damaged: Path) -> None:
    index = damaged / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionSafetyChecker", "OtherSafetyChecker"))
    with pytest.raises(StartupError, match=r"is a OtherSafetyChecker, which is not supported; set .*\"off\""):
        load(damaged)
    assert load(damaged, "off").safety_checker is None


def test_parts_are_loaded_without_their_checkers(strict: Path, damaged: Path, tmp_path: Path) -> None:
    edit = tmp_path / "edit"
    stock = diffusers.StableDiffusionPipeline.from_pretrained(strict)
    diffusers.StableDiffusionInstructPix2PixPipeline(
        **{**stock.components, "unet": tiny_unet(in_channels=8), "image_encoder": None}
    ).save_pretrained(edit)
    set_threshold(damaged, FLAG_NONE)
    model = load(damaged, edit=ComponentSource(source=str(edit)))
    [image] = render(model, job(task=Task.EDIT, image_guidance_scale=1.5))
    assert pixels_of(image).any()


def test_engine_admits_short_tasks_without_a_slot() -> None:
    engine, order = Engine(slots=1), []
    tasks = [EngineTask(lambda _t, name=name: order.append(name), lambda _t: None) for name in "abc"]
    engine.submit(tasks[:2])
    engine.submit_short(tasks[2:])
    assert engine.is_busy
    engine.step()
    assert order == ["c", "a"]


def test_gradient_is_not_flagged_by_a_lenient_checker(tmp_path: Path) -> None:
    model = load(tiny_sd_with_checker(tmp_path / "lenient", threshold=FLAG_NONE))
    assert model.safety_checker is not None
    assert not model.safety_checker.is_flagged(model.safety_checker.prepare(np.asarray(gradient(SIDE, SIDE, 9))))


def test_offloaded_checker_flags_the_same(strict: Path, tmp_path: Path) -> None:
    model = load(strict, offload="layers", offload_folder=str(tmp_path / "offload"))
    assert render(model, job()) == [RenderedImage(0, None)]
    model.close()


def test_checker_counts_as_a_module_of_the_model(strict: Path) -> None:
    config = ModelConfig(name="m", source=str(strict))
    model = load_model(config, device="cpu")
    assert model.safety_checker is not None
    assert model.safety_checker.module in model.modules()
    held = sum(size for _, size in tensor_sizes(model.modules()).values())
    assert describe_model(config, device="cpu").memory_bytes == held
    parts = list(model.safety_checker.module.modules())
    model.dismantle()
    assert not any(vars(part) for part in parts)
