"""Modular pipelines are served by the inputs of their blocks, with the pixels of diffusers' own ModularPipeline."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.modular_pipelines.flux3 import prompt_upsampler
from huggingface_hub import constants

from img2img.domain.conditioning import InpaintRegion
from img2img.domain.model_config import ModelConfig
from img2img.domain.model_status import Batching
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.engine.task import EngineTask
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs
from img2img.worker.pipelines.denoise import make_task_function
from img2img.worker.pipelines.image_processors import image_only_processor
from img2img.worker.pipelines.loading.locations import PipelineLocation
from img2img.worker.pipelines.model import Model, describe_model, load_model
from tests.support.engines import run_on, run_together
from tests.support.family_matrix import SIDE, image_of, inputs_of, mask
from tests.support.images import largest_difference
from tests.support.model_hub import model_hub
from tests.support.models.tiny_modular import (
    ORDINARY,
    add_prompt_upsampler,
    change_index,
    flux3_blocks,
    modular_copy,
    tiny_anima,
    tiny_flux3,
)
from tests.support.specs import make_spec

COMMON = {"width": SIDE, "height": SIDE, "scheduler": Scheduler.MODEL}


def serve(folder: Path) -> Model:
    return load_model(ModelConfig(name="tiny", source=str(folder)), device="cpu")


def stock(folder: Path, blocks: Any) -> Any:
    """Return the pipeline as the documentation of diffusers loads it."""
    pipeline = blocks.init_pipeline(str(folder))
    pipeline.load_components([name for name in pipeline.null_component_names if (folder / name).is_dir()])
    # transformers loads this processor with torchvision only.
    pipeline.update_components(**image_only_processor(str(folder)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipeline: Any, spec: JobSpec, **inputs: Any) -> np.ndarray:
    guider = getattr(pipeline, "guider", None)
    if guider is not None:
        pipeline.update_components(guider=guider.new(guidance_scale=spec.guidance_scale))
    if spec.negative_prompt:
        inputs["negative_prompt"] = spec.negative_prompt
    images = pipeline(
        prompt=spec.prompt,
        num_inference_steps=spec.num_inference_steps,
        generator=torch.Generator().manual_seed(spec.seed),
        width=spec.width,
        height=spec.height,
        output="images",
        **inputs,
    )
    return np.asarray(images[0])


def edit(seed: int, **changes: Any) -> JobSpec:
    fields = {"num_inference_steps": 2, "guidance_scale": 4.0, "prompt": f"house {seed}"}
    return make_spec(**{"task": Task.EDIT, "seed": seed, **COMMON, **fields, **changes})


@pytest.fixture(scope="module")
def flux3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux3(tmp_path_factory.mktemp("flux3") / "model")


def copy_of(model: Path, folder: Path) -> Path:
    """Make a folder with links to the parts of a model and a copy of its index."""
    for part in model.iterdir():
        if part.is_dir():
            (folder / part.name).symlink_to(part)
        else:
            shutil.copy(part, folder)
    return folder


def test_flux3_edits_with_the_pixels_of_the_modular_pipeline(flux3: Path) -> None:
    model = serve(flux3)
    card = model.card
    assert (card.family, card.tasks, card.max_images) == ("flux3", (Task.EDIT,), 16)
    assert (card.default_steps, card.default_guidance_scale, card.negative_prompt) == (50, 3.5, True)
    assert describe_model(ModelConfig(name="tiny", source=str(flux3)), device="cpu").card == card
    specs = [edit(0), edit(1, negative_prompt="fog"), edit(2, guidance_scale=1.0), edit(3, width=96), edit(4)]
    jobs = [(spec, inputs_of(spec)) for spec in specs]
    references = [image_of(8), image_of(9)]
    jobs[-1] = (specs[-1], Inputs(jobs[-1][1].image, references=tuple(references)))
    engine = Engine(slots=8)
    results = run_on(engine, model, jobs)
    pipeline = stock(flux3, flux3_blocks())
    for i, (spec, result) in enumerate(zip(specs, results, strict=True)):
        images = [image_of(spec.seed), *(references if i == 4 else ())]
        expected = call(pipeline, spec, image=images)
        assert largest_difference(run_together(model, [jobs[i]])[0], expected) == 0, spec
        assert largest_difference(result, expected) <= 1, spec
    assert len({result.tobytes() for result in results}) == len(jobs)
    # Two calls for each step with guidance. Those of jobs with equal shapes are merged.
    assert engine.calls_run["denoise"] < 2 * (4 * 2 + 1)
    assert model.batching["transformer"] in (Batching.EXACT, Batching.ROUNDING)


def test_steps_of_modular_pipeline_are_counted(flux3: Path) -> None:
    model, spec = serve(flux3), edit(0, num_inference_steps=3)
    seen: list[int] = []

    class Watched(EngineTask):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "step":
                seen.append(value)
            super().__setattr__(name, value)

    engine = Engine(slots=1)
    engine.submit([Watched(make_task_function(model, spec, inputs_of(spec), 0), lambda _task: None)])
    engine.shut_down()
    engine.run()
    assert sorted(set(seen) - {0}) == [1, 2, 3]


def test_distilled_flux3_has_no_guidance(tmp_path: Path) -> None:
    kind = diffusers.Flux3DistilledModularPipeline
    folder = tiny_flux3(tmp_path / "model", kind=kind)
    model, spec = serve(folder), edit(1, guidance_scale=1.0)
    assert (model.card.guidance, model.card.negative_prompt, model.card.default_steps) == (False, False, 16)
    expected = call(stock(folder, flux3_blocks(kind)), spec, image=image_of(1))
    assert largest_difference(run_together(model, [(spec, inputs_of(spec))])[0], expected) == 0


def test_flux3_rewrites_prompts_with_its_upsampler(
    flux3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_upsampler, "MAX_NEW_TOKENS", 8)
    folder = copy_of(flux3, tmp_path)
    add_prompt_upsampler(folder)
    model, spec = serve(folder), edit(1)
    assert model.card.max_images == 10
    [result, plain] = [run_together(served, [(spec, inputs_of(spec))])[0] for served in (model, serve(flux3))]
    expected = call(stock(folder, diffusers.Flux3AutoBlocks()), spec, image=image_of(1))
    assert largest_difference(result, expected) == 0
    assert largest_difference(result, plain) > 1


def test_subseed_varies_the_noise_of_a_modular_pipeline(flux3: Path) -> None:
    model = serve(flux3)
    specs = [edit(0), edit(0, subseed=5, subseed_strength=0.5), edit(0, subseed=5, subseed_strength=0.9)]
    assert len({result.tobytes() for result in run_together(model, [(spec, inputs_of(spec)) for spec in specs])}) == 3


def test_guider_that_changes_modules_runs_one_job_at_a_time(flux3: Path, tmp_path: Path) -> None:
    folder = copy_of(flux3, tmp_path)
    layers = {"skip_layer_config": diffusers.LayerSkipConfig(indices=[0], fqn="transformer_blocks")}
    guider = diffusers.SkipLayerGuidance(guidance_scale=2.5, **layers, skip_layer_guidance_start=0.0)
    guider.save_pretrained(folder / "guider")
    change_index(folder, guider=["diffusers", "SkipLayerGuidance"])
    model = serve(folder)
    assert set(model.batching.values()) == {Batching.ALONE}
    assert model.card.default_guidance_scale == 2.5
    specs = [edit(0), edit(1)]
    results = run_together(model, [(spec, inputs_of(spec)) for spec in specs])
    pipeline = stock(folder, flux3_blocks())
    for spec, result in zip(specs, results, strict=True):
        assert largest_difference(result, call(pipeline, spec, image=image_of(spec.seed))) == 0


@pytest.mark.parametrize("class_name", [*ORDINARY, "AnimaModularPipeline"])
def test_modular_pipeline_of_other_family_has_its_pixels(tmp_path: Path, class_name: str) -> None:
    kind = getattr(diffusers, class_name)
    if class_name in ORDINARY:
        make, tasks = ORDINARY[class_name]
        folder = modular_copy(kind, make(tmp_path / "base"), tmp_path / "model")
    else:
        folder, tasks = tiny_anima(tmp_path / "model"), (Task.IMG2IMG,)
    model = serve(folder)
    assert model.card.tasks == tasks
    # Blocks of Stable Diffusion XL convert the VAE to float32 for a time.
    runs_alone = set(model.batching.values()) == {Batching.ALONE}
    assert runs_alone is (class_name == "StableDiffusionXLModularPipeline")
    region = InpaintRegion(mask="1" * 64, canvas=(SIDE, SIDE), box=(0, 0, SIDE, SIDE))
    common = {"strength": 0.6, "num_inference_steps": 3, "prompt": "red", "region": region, **COMMON}
    scale = 4.0 if model.card.guidance else 1.0
    specs = [make_spec(task=task, seed=seed, guidance_scale=scale, **common) for seed in (1, 2) for task in tasks]
    results = run_together(model, [(spec, inputs_of(spec)) for spec in specs])
    pipeline = stock(folder, getattr(diffusers, kind.default_blocks_name)())
    for spec, result in zip(specs, results, strict=True):
        more = {"mask_image": mask()} if spec.task is Task.INPAINT else {}
        more |= {"strength": 0.6} if spec.task is not Task.EDIT else {}
        more |= {"guidance_scale": scale} if "guidance_scale" in pipeline.blocks.input_names else {}
        expected = call(pipeline, spec, image=image_of(spec.seed), **more)
        assert largest_difference(result, expected) <= 1, spec.task


def test_anima_needs_torchvision_for_its_mask(tmp_path: Path) -> None:
    folder = tiny_anima(tmp_path / "model", has_padding_mask=True)
    with pytest.raises(StartupError, match="CosmosTransformer3DModel requires torchvision; run"):
        serve(folder)


def test_only_files_of_components_are_downloaded(flux3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = shutil.copytree(flux3, tmp_path / "repository")
    for unused in ("vae/model.bin", "all.safetensors", "other/model.safetensors"):
        (repository / unused).parent.mkdir(exist_ok=True)
        (repository / unused).write_bytes(b"0")
    with model_hub("org/tiny", repository) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub)
        template = hub + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        location = PipelineLocation("org/tiny", None, None)
        folder = location.folder()
    assert location.index == PipelineLocation(str(flux3), None, None).index
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert names == {str(file.relative_to(flux3)) for file in flux3.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("class_name", "reason"),
    [
        ("Krea2ModularPipeline", "is not supported: its blocks have no image as input and as output"),
        ("WanImage2VideoModularPipeline", "is not supported: its blocks have no image as input and as output"),
        ("QwenImageLayeredModularPipeline", "is not supported: it returns the layers of an image"),
        ("Flux3ModularPipeline", "needs the component text_encoder, and the model has no folder text_encoder; "),
        ("ModularPipeline", "is not supported: its index does not name its blocks"),
    ],
)
def test_modular_pipeline_that_requests_cannot_call_is_refused(tmp_path: Path, class_name: str, reason: str) -> None:
    (tmp_path / "modular_model_index.json").write_text(json.dumps({"_class_name": class_name}))
    with pytest.raises(StartupError, match=f"{class_name} {reason}"):
        serve(tmp_path)


def test_blocks_that_are_code_of_the_model_are_refused(tmp_path: Path) -> None:
    index = {"_class_name": "Flux3ModularPipeline", "_blocks_class_name": "MyBlocks"}
    (tmp_path / "modular_model_index.json").write_text(json.dumps(index))
    with pytest.raises(StartupError, match=r"has no blocks MyBlocks; .*: code outside of diffusers is not run"):
        serve(tmp_path)
    (tmp_path / "modular_config.json").write_text("{}")
    with pytest.raises(StartupError, match=r"has blocks of its own .*: code outside of diffusers is not run"):
        serve(tmp_path)


def test_component_of_another_repository_is_refused(flux3: Path, tmp_path: Path) -> None:
    copy_of(flux3, tmp_path)
    (tmp_path / "vae").unlink()
    change_index(tmp_path, tokenizer=["transformers", "Qwen3VLProcessor"])
    with pytest.raises(StartupError, match=r"needs the component vae, .*copy it there"):
        serve(tmp_path)
    (tmp_path / "vae").symlink_to(flux3 / "vae")
    with pytest.raises(StartupError, match="Qwen3VLProcessor requires torchvision"):
        serve(tmp_path)
