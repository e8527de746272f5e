"""A pipeline class that is in no table is served by the signature of its call, with the pixels of the class itself."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from img2img.domain.model_config import ModelConfig
from img2img.domain.model_status import Batching
from img2img.domain.parameters import Scheduler, Sigmas, Task
from img2img.domain.spec import JobSpec
from img2img.worker.engine.engine import Engine
from img2img.worker.errors import StartupError
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.families import family_of
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import run_on, run_together
from tests.support.family_matrix import call_stock, inputs_of, jobs_of
from tests.support.images import largest_difference
from tests.support.models.tiny_models import tiny_fast_vae, tiny_sd
from tests.support.models.tiny_unlisted import tiny_chroma
from tests.support.specs import make_spec

WIDTH, HEIGHT = 96, 64


class BlendPipeline(DiffusionPipeline):
    """A class of another release: blends the noisy image with the prediction, under an own schedule of strengths."""

    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    def _embed(self, text: str) -> torch.Tensor:
        ids = self.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(ids)[0]

    def _scale(self, latents: torch.Tensor) -> torch.Tensor:
        return latents

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        image: Image.Image,
        strength: float = 0.5,
        num_inference_steps: int = 12,
        guidance_scale: float = 3.0,
        negative_prompt: str | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        guided = guidance_scale > 1
        texts = [negative_prompt or "", prompt] if guided else [prompt]
        embeds = torch.cat([self._embed(text) for text in texts])
        pixels = self.image_processor.preprocess(image)
        start = self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor
        self.scheduler.set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps[-max(1, int(num_inference_steps * strength)) :]
        latents = self.scheduler.add_noise(start, torch.randn(start.shape, generator=generator), timesteps[:1])
        for t in timesteps:
            noise = self.unet(self._scale(torch.cat([latents] * len(texts))), t, encoder_hidden_states=embeds).sample
            if guided:
                without, towards = noise.chunk(2)
                noise = without + guidance_scale * (towards - without)
            latents = self.scheduler.step(noise, t, latents).prev_sample
        decoded = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return ImagePipelineOutput(images=self.image_processor.postprocess(decoded, output_type=output_type))


class MixingUNet(UNet2DConditionModel):
    """A denoiser whose rows depend on each other."""

    __module__ = "diffusers"

    def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(sample - 0.3 * sample.mean(0, keepdim=True), *args, **kwargs)


class ReplacingPipeline(BlendPipeline):
    """A class whose call changes a module that all jobs share, as those of perturbed attention do."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        image: Image.Image,
        strength: float = 0.5,
        num_inference_steps: int = 12,
        guidance_scale: float = 3.0,
        negative_prompt: str | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        before = self.unet.attn_processors
        self.unet.set_attn_processor(ScaledProcessor())
        arguments = (prompt, image, strength, num_inference_steps, guidance_scale, negative_prompt)
        output = super().__call__(*arguments, generator, output_type)
        self.unet.set_attn_processor(before)
        return output


class ScaledProcessor(diffusers.models.attention_processor.AttnProcessor):
    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 1.5 * super().__call__(*args, **kwargs)


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of diffusers that has the classes of this module."""
    for kind in (BlendPipeline, ReplacingPipeline, MixingUNet):
        monkeypatch.setattr(diffusers, kind.__name__, kind, raising=False)
        assert family_of(kind.__name__) is None


def blend(folder: Path, kind: type[DiffusionPipeline] = BlendPipeline, unet: type = UNet2DConditionModel) -> Path:
    parts = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd(folder / "sd"), safety_checker=None).components
    torch.manual_seed(0)
    parts["unet"] = unet.from_config(parts["unet"].config)
    parts["scheduler"] = DDIMScheduler.from_config(parts["scheduler"].config)
    names = list(inspect.signature(kind.__init__).parameters)[1:]
    kind(**{name: parts[name] for name in names}).save_pretrained(folder / "model")
    return folder / "model"


def serve(folder: Path) -> Model:
    return load_model(ModelConfig(name="tiny", source=str(folder)), device="cpu")


IMAGE = Image.fromarray(np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def specs() -> list[JobSpec]:
    common = {"width": WIDTH, "height": HEIGHT, "scheduler": Scheduler.MODEL}
    return [
        make_spec(strength=0.6, guidance_scale=4.0, num_inference_steps=5, seed=1, prompt="red", **common),
        make_spec(
            strength=1.0,
            guidance_scale=2.0,
            num_inference_steps=4,
            seed=2,
            prompt="a house",
            negative_prompt="fog",
            **common,
        ),
        make_spec(strength=0.4, guidance_scale=1.0, num_inference_steps=6, seed=3, **common),
        make_spec(strength=0.7, guidance_scale=4.0, num_inference_steps=4, seed=4, **common),
    ]


def stock(pipeline: DiffusionPipeline, spec: JobSpec) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        spec.prompt,
        IMAGE,
        strength=spec.strength,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        negative_prompt=spec.negative_prompt or None,
        generator=torch.Generator().manual_seed(spec.seed),
    ).images[0]
    return np.asarray(image)


def check_pixels(kind: type[DiffusionPipeline], folder: Path, model: Model) -> Engine:
    """Compare jobs with the class itself, alone and in company. Returns the engine of the latter."""
    pipeline, engine = kind.from_pretrained(folder), Engine(slots=8)
    jobs = [(spec, Inputs(to_tensor(IMAGE))) for spec in specs()]
    together = run_on(engine, model, jobs)
    for job, result in zip(jobs, together, strict=True):
        expected = stock(pipeline, job[0])
        assert largest_difference(run_together(model, [job])[0], expected) == 0, job[0]
        assert largest_difference(result, expected) <= 1, job[0]
    assert len({result.tobytes() for result in together}) == len(jobs)
    return engine


def test_unknown_class_is_served_by_the_signature_of_its_call(tmp_path: Path, release: None) -> None:
    folder = blend(tmp_path)
    model = serve(folder)
    card = model.card
    assert (card.tasks, card.family) == ((Task.IMG2IMG,), "blend")
    assert (card.default_steps, card.default_guidance_scale, card.negative_prompt) == (12, 3.0, True)
    engine = check_pixels(BlendPipeline, folder, model)
    steps = [spec.steps_run for spec in specs()]
    assert engine.calls_run["denoise"] < sum(steps), "calls of jobs are merged"
    assert model.batching["unet"] in (Batching.EXACT, Batching.ROUNDING)
    assert engine.rows_run["denoise"] >= sum(steps)


def test_unknown_class_whose_rows_depend_on_each_other_is_not_merged(tmp_path: Path, release: None) -> None:
    folder = blend(tmp_path, unet=MixingUNet)
    model = serve(folder)
    engine = check_pixels(BlendPipeline, folder, model)
    assert engine.calls_run["denoise"] == sum(spec.steps_run for spec in specs())
    assert model.batching["unet"] is Batching.ALONE


def test_unknown_class_that_changes_shared_modules_runs_one_job_at_a_time(tmp_path: Path, release: None) -> None:
    folder = blend(tmp_path, ReplacingPipeline)
    model = serve(folder)
    assert model.batching["unet"] is Batching.ALONE
    check_pixels(ReplacingPipeline, folder, model)


def test_strength_0_of_unknown_class_encodes_and_decodes(tmp_path: Path, release: None) -> None:
    model = serve(blend(tmp_path))
    spec = specs()[0].model_copy(update={"strength": 0})
    [result] = run_together(model, [(spec, Inputs(to_tensor(IMAGE)))])
    assert result.shape == (HEIGHT, WIDTH, 3)


class NeedingPipeline(BlendPipeline):
    def __call__(self, prompt: str, image: Any, trajectory: Any, num_inference_steps: int = 4) -> None:
        """Needs an argument that requests do not have."""


class TextPipeline(BlendPipeline):
    def __call__(self, prompt: str, num_inference_steps: int = 4) -> None:
        """Makes images of text only."""


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (NeedingPipeline, "its call needs `trajectory`, which no field of a request gives"),
        (TextPipeline, "its call takes no image"),
    ],
)
def test_class_that_requests_cannot_call_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, reason: str
) -> None:
    monkeypatch.setattr(diffusers, kind.__name__, kind, raising=False)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind.__name__}))
    with pytest.raises(StartupError, match=f"{kind.__name__} is not supported: {reason}$"):
        serve(tmp_path)


def test_class_that_diffusers_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FuturePipeline"}')
    with pytest.raises(StartupError, match=f"diffusers {diffusers.__version__} has no pipeline FuturePipeline"):
        serve(tmp_path)


def test_fast_vae_and_sigmas_give_the_pixels_of_the_class(tmp_path: Path) -> None:
    kind = diffusers.ChromaImg2ImgPipeline
    folder, fast = tiny_chroma(kind, tmp_path / "model"), tiny_fast_vae(tmp_path / "fast")
    model = load_model(ModelConfig(name="tiny", source=str(folder), fast_vae=str(fast)), device="cpu")
    assert (model.card.fast_vae, model.card.tasks) == (True, (Task.IMG2IMG, Task.INPAINT))
    stock = kind.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    # Two steps have the same sigmas in every schedule.
    plain = jobs_of(kind.__name__, Task.IMG2IMG, model)[0].model_copy(update={"num_inference_steps": 4})
    specs = [plain, *(plain.model_copy(update=changes) for changes in ({"fast_vae": True}, {"sigmas": Sigmas.KARRAS}))]
    results = run_together(model, [(spec, inputs_of(spec)) for spec in specs])
    own, small = stock.vae, diffusers.AutoencoderTiny.from_pretrained(fast)
    for spec, result in zip(specs, results, strict=True):
        stock.vae = small if spec.fast_vae else own
        karras = spec.sigmas is Sigmas.KARRAS
        stock.scheduler = type(stock.scheduler).from_config(stock.scheduler.config, use_karras_sigmas=karras)
        assert largest_difference(result, call_stock(stock, spec)) <= 1
    assert len({result.tobytes() for result in results}) == len(specs)
