"""LoRAs and image prompts: pixels equal those of the stock pipelines, alone and batched with other adapters."""

import pickle
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from img2img.domain.conditioning import Control, ControlType, ImagePrompt, InpaintRegion, Lora, Padding
from img2img.domain.model_config import ComponentSource, ControlNetSource, ModelConfig
from img2img.domain.parameters import Scheduler, Task
from img2img.domain.spec import JobSpec
from img2img.worker.errors import StartupError
from img2img.worker.images.inpaint_canvas import InpaintCanvas
from img2img.worker.images.inputs import Inputs, to_tensor
from img2img.worker.pipelines.model import Model, load_model
from tests.support.engines import run_together
from tests.support.models.tiny_adapters import tiny_ip_adapter, tiny_lora
from tests.support.models.tiny_controlnets import tiny_controlnet
from tests.support.models.tiny_models import tiny_sd, tiny_sdxl
from tests.support.specs import make_spec
from tests.support.stock import call_stock
from tests.unit.test_model_config import CodeInPickle

SIDE = 64
STOCK = {
    (tiny_sd, Task.IMG2IMG): diffusers.StableDiffusionImg2ImgPipeline,
    (tiny_sd, Task.INPAINT): diffusers.StableDiffusionInpaintPipeline,
    (tiny_sdxl, Task.IMG2IMG): diffusers.StableDiffusionXLImg2ImgPipeline,
    (tiny_sdxl, Task.INPAINT): diffusers.StableDiffusionXLInpaintPipeline,
}
CONTROLLED = {
    tiny_sd: diffusers.StableDiffusionControlNetImg2ImgPipeline,
    tiny_sdxl: diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
}
PROMPT_IMAGES = ("1" * 64, "2" * 64)


class Served:
    """A tiny model with three LoRAs and an IP-Adapter, the same model without them, and the stock pipelines."""

    def __init__(self, make: object, folder: Path) -> None:
        self.make = make
        self.folder = make(folder / "model")  # type: ignore[operator]
        self.loras = {
            "ink": tiny_lora(self.folder, folder / "ink.safetensors", seed=1),
            "v1.5-clay": tiny_lora(self.folder, folder / "clay.safetensors", seed=2, rank=8, kohya=True),
            "unet-only": tiny_lora(self.folder, folder / "unet.safetensors", seed=3, text=False),
        }
        self.ip_adapter = tiny_ip_adapter(self.folder, folder / "ip")
        self.canny = tiny_controlnet(self.folder, folder / "canny", seed=1)
        config = ModelConfig(
            name="tiny",
            source=str(self.folder),
            loras={name: ComponentSource(source=str(file)) for name, file in self.loras.items()},
            ip_adapter=ComponentSource(source=str(self.ip_adapter)),
            controlnets={ControlType.CANNY: ControlNetSource(source=str(self.canny))},
        )
        self.model: Model = load_model(config, device="cpu")
        self.plain: Model = load_model(ModelConfig(name="tiny", source=str(self.folder)), device="cpu")
        rng = np.random.default_rng(2)
        self.image = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        self.map = Image.radial_gradient("L").resize((SIDE, SIDE)).convert("RGB")
        self.mask = Image.new("L", (SIDE, SIDE))
        self.mask.paste(255, (8, 20, 40, 60))
        shapes = ((40, 60, 3), (90, 70, 3))
        self.prompts = {
            name: Image.fromarray(rng.integers(0, 256, shape, np.uint8))
            for name, shape in zip(PROMPT_IMAGES, shapes, strict=True)
        }

    def inputs(self, spec: JobSpec) -> Inputs:
        others = {
            "controls": tuple(to_tensor(self.map) for _ in spec.controls),
            "image_prompts": tuple(self.prompts[prompt.image] for prompt in spec.image_prompts),
        }
        if spec.task is not Task.INPAINT:
            return Inputs(to_tensor(self.image), **others)
        canvas = InpaintCanvas(self.image, self.mask, spec.region)
        view, mask = canvas.model_input((spec.width, spec.height))
        return Inputs(to_tensor(view), to_tensor(mask), canvas, **others)

    def run(self, *specs: JobSpec, model: Model | None = None) -> list[np.ndarray]:
        return run_together(model or self.model, [(spec, self.inputs(spec)) for spec in specs])

    def reference(self, spec: JobSpec) -> np.ndarray:
        stock = STOCK[self.make, spec.task].from_pretrained(self.folder)  # type: ignore[index]
        conditions = {}
        if spec.controls:
            net = diffusers.ControlNetModel.from_pretrained(self.canny)
            stock = CONTROLLED[self.make].from_pipe(stock, controlnet=net)  # type: ignore[index]
            conditions |= {"control_image": self.map, "controlnet_conditioning_scale": spec.controls[0].scale}
        stock.set_progress_bar_config(disable=True)
        stock.scheduler = diffusers.DDIMScheduler.from_config(stock.scheduler.config)
        if spec.image_prompts:
            count = len(spec.image_prompts)
            stock.load_ip_adapter(
                str(self.ip_adapter), subfolder=[""] * count, weight_name=["ip-adapter.safetensors"] * count
            )
            stock.set_ip_adapter_scale([prompt.scale for prompt in spec.image_prompts])
            conditions["ip_adapter_image"] = [self.prompts[prompt.image] for prompt in spec.image_prompts]
        if spec.loras:
            for index, lora in enumerate(spec.loras):
                stock.load_lora_weights(self.loras[lora.name], adapter_name=f"a{index}")
            stock.set_adapters([f"a{i}" for i in range(len(spec.loras))], [lora.scale for lora in spec.loras])
        if spec.task is Task.INPAINT:
            conditions |= {"mask_image": self.mask, "width": SIDE, "height": SIDE}
        return call_stock(
            stock,
            spec,
            prompt=spec.prompt,
            image=self.image,
            strength=spec.strength,
            **conditions,
        )


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl], ids=["sd", "sdxl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(request.param, tmp_path_factory.mktemp("adapters"))


def job(*loras: tuple[str, float], image_prompts: tuple[tuple[str, float], ...] = (), **changes: object) -> JobSpec:
    defaults = {
        "strength": 0.8,
        "num_inference_steps": 4,
        "width": SIDE,
        "height": SIDE,
        "loras": tuple(Lora(name=name, scale=scale) for name, scale in loras),
        "image_prompts": tuple(ImagePrompt(image=image, scale=scale) for image, scale in image_prompts),
    }
    return make_spec(**{**defaults, **changes})


def within(a: np.ndarray, b: np.ndarray) -> bool:
    return int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1


FIRST, SECOND = PROMPT_IMAGES
INPAINT = {
    "task": Task.INPAINT,
    "region": InpaintRegion(mask="9" * 64, blur=0, margins=Padding(), canvas=(SIDE, SIDE), box=(0, 0, SIDE, SIDE)),
}
JOBS = [
    job(),
    job(("ink", 1.0)),
    job(("ink", 1.0), seed=5, guidance_scale=1.0),
    job(("ink", 0.4)),
    job(("v1.5-clay", -0.7)),
    job(("unet-only", 1.5)),
    job(("v1.5-clay", 0.5), ("ink", 0.8)),
    job(("ink", 0.6), **INPAINT),
    job(image_prompts=((FIRST, 0.6),)),
    job(image_prompts=((FIRST, 1.0), (SECOND, 0.3))),
    job(image_prompts=((SECOND, 0.8),), guidance_scale=1.0, **INPAINT),
    job(("ink", 0.5), ("unet-only", 1.0), image_prompts=((SECOND, 0.7),)),
    job(
        ("ink", 0.9), image_prompts=((FIRST, 0.5),), controls=(Control(type="canny", image="3" * 64, preprocess=False),)
    ),
]


def test_adapters_give_stock_pixels_alone_and_batched(served: Served) -> None:
    together = served.run(*JOBS)
    plain = served.run(job())[0]
    for spec, batched in zip(JOBS, together, strict=True):
        reference = served.reference(spec)
        [alone] = served.run(spec)
        assert within(alone, reference), spec
        assert within(batched, reference), spec
        if spec.loras or spec.image_prompts:
            assert not within(reference, plain), "the adapter must change the image"


def test_loaded_adapters_do_not_change_jobs_without_adapters(served: Served) -> None:
    plain = [job(seed=seed, strength=0.5, prompt=prompt) for seed, prompt in enumerate(("a house", "a tree"))]
    plain.append(job(**INPAINT))
    for spec in plain:
        [expected] = served.run(spec, model=served.plain)
        served.run(job(("ink", 1.0), image_prompts=((FIRST, 1.0),)))
        [result] = served.run(spec)
        assert result.tobytes() == expected.tobytes()
    assert np.array_equal(served.run(*plain), served.run(*plain, model=served.plain))


def test_adapters_with_scale_0_are_not_applied(served: Served) -> None:
    [plain] = served.run(job())
    [zero] = served.run(job(("ink", 0.0), image_prompts=((FIRST, 0.0),)))
    assert zero.tobytes() == plain.tobytes()


def test_adapters_share_the_weights_of_the_model(served: Served) -> None:
    def weight_bytes(model: Model) -> int:
        adapted = [module.module for module in model.adapters.modules]
        pipeline = model.pipeline(Task.IMG2IMG, Scheduler.DDIM)
        modules = [module for module in pipeline.components.values() if isinstance(module, torch.nn.Module)]
        tensors = [t for module in [*modules, *adapted] for t in module.parameters()]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    files = [*served.loras.values(), *served.ip_adapter.rglob("*.safetensors")]
    adapter_bytes = sum(file.stat().st_size for file in files)
    assert weight_bytes(served.plain) < weight_bytes(served.model) <= weight_bytes(served.plain) + adapter_bytes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda key, tensor: (key.replace("down_blocks.1", "down_blocks.9"), tensor), "does not fit"),
        (lambda key, tensor: (key, tensor[..., :-1] if "lora_A" in key else tensor), "size mismatch"),
        (lambda key, tensor: (key.replace("lora", "other"), tensor), "does not have the keys of a LoRA"),
    ],
)
def test_load_model_rejects_lora_that_does_not_fit(
    tmp_path: Path, damage: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]], message: str
) -> None:
    folder = tiny_sd(tmp_path / "model")
    good = tiny_lora(folder, tmp_path / "good.safetensors", seed=1, text=False)
    invalid = dict(damage(key, tensor.contiguous()) for key, tensor in load_file(good).items())
    save_file({key: tensor.contiguous() for key, tensor in invalid.items()}, tmp_path / "bad.safetensors")
    loras = {
        "good": ComponentSource(source=str(good)),
        "bad": ComponentSource(source=str(tmp_path / "bad.safetensors")),
    }
    with pytest.raises(StartupError, match=f"model 'm': LoRA 'bad'.*{message}") as raised:
        load_model(ModelConfig(name="m", source=str(folder), loras=loras), device="cpu")
    assert "\n" not in str(raised.value)


def test_load_model_rejects_ip_adapter_that_does_not_fit(tmp_path: Path) -> None:
    folder = tiny_sd(tmp_path / "model")
    adapter = tiny_ip_adapter(folder, tmp_path / "ip")
    file = adapter / "ip-adapter.safetensors"
    good = load_file(file)
    invalid = {
        "does not fit": {key: tensor for key, tensor in good.items() if ".1.to_k_ip" not in key},
        "face": good | {"image_proj.perceiver_resampler.proj_in.weight": torch.zeros(1)},
        "has no `image_proj`": {"some.weight": torch.zeros(1)},
    }
    for message, weights in invalid.items():
        save_file(weights, file)
        with pytest.raises(StartupError, match=f"model 'm': IP-Adapter.*{message}"):
            load_model(
                ModelConfig(name="m", source=str(folder), ip_adapter=ComponentSource(source=str(adapter))), device="cpu"
            )
    save_file(good, file)
    (adapter / "image_encoder" / "model.safetensors").unlink()
    with pytest.raises(StartupError, match=r"image encoder: .* has no weights"):
        load_model(
            ModelConfig(name="m", source=str(folder), ip_adapter=ComponentSource(source=str(adapter))), device="cpu"
        )


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_load_model_rejects_pickled_checkpoint_without_reading_it(tmp_path: Path, part: str) -> None:
    folder = tiny_sd(tmp_path / "model")
    [weights] = (folder / part).glob("*.safetensors")
    weights.unlink()
    name = "diffusion_pytorch_model.bin" if part == "unet" else "pytorch_model.bin"
    trace = tmp_path / "trace"
    (folder / part / name).write_bytes(pickle.dumps(CodeInPickle(trace)))
    with pytest.raises(StartupError, match="cannot load model 'm'"):
        load_model(ModelConfig(name="m", source=str(folder)), device="cpu")
    assert not trace.exists()
