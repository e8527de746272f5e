"""Reading and validation of models.toml. No model is loaded."""

import pickle
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from img2img.app.settings import ApiSettings
from img2img.domain.model_config import ComponentSource, ModelConfig
from img2img.domain.parameters import Scheduler
from img2img.models_file import InvalidModelsFile, read_models_file
from img2img.settings import SharedSettings
from img2img.worker.errors import StartupError
from img2img.worker.pipelines.loading.served_models import (
    ModelSelection,
    config_for,
    models_of_file,
    models_to_preload,
)
from img2img.worker.pipelines.loading.weights import resolve_weights
from img2img.worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]


def configs_to_serve(model: str, revision: str | None, file: Path | None, names: str | None) -> list[ModelConfig]:
    """The models of a worker that no request has changed."""
    models, selection = models_of_file(model, revision, file), ModelSelection(names, ())
    selection.check(models, {})
    return list(selection.select(models, {}).configs.values())


def test_settings_are_defaults_of_keys_that_a_model_does_not_set() -> None:
    settings = WorkerSettings(dtype="bfloat16", compile="regional")
    file = {
        "plain": ModelConfig(name="plain", source="a"),
        "set": ModelConfig(name="set", source="b", dtype="float32", compile="off"),
    }
    configs = ModelSelection(None, (), settings.model_defaults).select(file, {}).configs
    assert (configs["plain"].dtype, configs["plain"].compile) == ("bfloat16", "regional")
    assert (configs["set"].dtype, configs["set"].compile) == ("float32", "off")
    assert ApiSettings(dtype="bfloat16").as_environment()["IMG2IMG_DTYPE"] == "bfloat16"
    with pytest.raises(ValidationError, match="images depend on measurements of time"):
        WorkerSettings(deterministic=True, cudnn_benchmark=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "photo").mkdir()
    (tmp_path / "ink.safetensors").touch()
    path = tmp_path / "models.toml"
    path.write_text("""
        [models.photo]
        source = "./photo"
        steps = 25
        scheduler = "euler"
        loras.ink = "./ink.safetensors"
        ip_adapter = { source = "org/adapter", subfolder = "models", weight_name = "a.safetensors" }

        [models."org/large"]
        source = "org/large"
        revision = "abc"
        variant = "fp16"
    """)
    return path


def test_read_models_file_returns_configs_by_name(file: Path) -> None:
    models = read_models_file(file)
    assert list(models) == ["photo", "org/large"]
    photo, large = models.values()
    assert (photo.name, photo.source) == ("photo", str(file.parent / "photo"))
    assert (photo.steps, photo.guidance_scale, photo.scheduler) == (25, None, Scheduler.EULER)
    assert photo.loras == {"ink": ComponentSource(source=str(file.parent / "ink.safetensors"))}
    assert photo.ip_adapter == ComponentSource(source="org/adapter", subfolder="models", weight_name="a.safetensors")
    assert (large.source, large.revision, large.variant) == ("org/large", "abc", "fp16")


def test_aliases_are_names_of_one_model(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    lines = '[models.a]\nsource = "org/a"\naliases = ["gpt-image-1", "x/y"]\n[models.b]\nsource = "org/b"\n'
    path.write_text(lines)
    assert read_models_file(path)["a"].aliases == ("gpt-image-1", "x/y")
    for aliases in ('["a"]', '["gpt-image-1"]'):
        path.write_text(f"{lines}aliases = {aliases}\n")
        with pytest.raises(InvalidModelsFile, match=r"aliases: .* is also a name or an alias of another model"):
            read_models_file(path)
    path.write_text(f'{lines}aliases = ["two words"]\n')
    with pytest.raises(InvalidModelsFile, match=r"models\.b\.aliases\.0"):
        read_models_file(path)


def test_keys_for_memory(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text("""
        [models.a]
        source = "org/a"
        quantize = "int8"
        offload = "layers"
        offload_folder = "offloaded"
        vae_tiling = "auto"

        [models.b]
        source = "org/b"
        quantize = { "*" = "int8", text_encoder = "fp8" }
        offload_folder = "/mnt/fast"
        vae_tiling = true
    """)
    a, b = read_models_file(path).values()
    assert (a.quantize, b.quantize) == ({"*": "int8"}, {"*": "int8", "text_encoder": "fp8"})
    assert (a.offload_folder, b.offload_folder) == (tmp_path / "offloaded", Path("/mnt/fast"))
    assert (a.offload, b.offload) == ("layers", "none")
    assert (a.vae_tiling, b.vae_tiling) == ("auto", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models.a]\nsource = 'x'\nlora = {}", "models.a.lora: unknown key"),
        ("[models.a]\nsource = 'x'\nloras.ink = { source = 'y', file = 'z' }", "models.a.loras.ink.file: unknown key"),
        ("[models.a]\nsource = 'x'\nscheduler = 'magic'", "models.a.scheduler: Input should be 'ddim'"),
        ("[models.a]\nsource = 'x'\nsteps = 0", "models.a.steps: Input should be greater than or equal to 1, got 0"),
        ("[models.a]\nsteps = 3", "models.a.source: Field required"),
        (
            "[models.a]\nsource = 'x'\nquantize = 'int9'",
            "models.a.quantize.*: Input should be 'int8', 'fp8', 'int4' or",
        ),
        ("[models.a]\nsource = 'x'\nquantize.unet = 'q'", "models.a.quantize.unet: Input should be 'int8', 'fp8'"),
        ("[models.a]\nsource = 'x'\noffload = 'disk'", "models.a.offload: Input should be 'none', 'model', 'group' or"),
        ("[models.a]\nsource = 'x'\nvae_tiling = 'always'", "models.a.vae_tiling"),
        ("[models.'a b']\nsource = 'x'", "models.a b: Input should be 1 to 200 letters"),
        ("[model.a]\nsource = 'x'", "models: Field required"),
        ("[models]", "models: Dictionary should have at least 1 item"),
        ("[models.a", "cannot read the model file"),
    ],
)
def test_read_models_file_reports_error_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "models.toml").write_text(text)
    with pytest.raises(InvalidModelsFile) as raised:
        read_models_file(tmp_path / "models.toml")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_configs_to_serve_returns_all_or_selected_models(file: Path) -> None:
    def served(names: str | None) -> list[str]:
        return [config.name for config in configs_to_serve("photo", None, file, names)]

    assert served(None) == ["photo", "org/large"]
    assert served("org/large") == ["org/large"]
    assert served(" photo , demo,photo") == ["photo", "demo"]
    for names, message in (
        ("photo,nope", "unknown model 'nope'; known: demo, org/large, photo"),
        (" , ", "one or more models"),
    ):
        with pytest.raises(StartupError, match=message):
            served(names)
    with pytest.raises(StartupError, match="IMG2IMG_REVISION"):
        configs_to_serve("photo", "abc", file, None)
    with pytest.raises(StartupError, match="cannot read the model file"):
        configs_to_serve("photo", None, file.with_name("none.toml"), None)


def test_configs_to_serve_without_file_returns_one_model(tmp_path: Path) -> None:
    [hub] = configs_to_serve("org/name", "abc", None, None)
    assert (hub.name, hub.source, hub.revision) == ("org/name", "org/name", "abc")
    [demo] = configs_to_serve("demo", None, None, None)
    assert demo == config_for("demo")
    assert Path(demo.source, "model_index.json").is_file()
    with pytest.raises(StartupError, match="source: /no/such/folder does not exist"):
        configs_to_serve("/no/such/folder", None, None, None)


def test_single_files(tmp_path: Path) -> None:
    """Paths, also without a dot, and files on the hub."""
    file = tmp_path / "models.toml"
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "b/c/d").mkdir(parents=True)
    (tmp_path / "b/c/d.safetensors").touch()
    sources = {
        "bare": "a.safetensors",
        "dot": "./a.safetensors",
        "absolute": str(tmp_path / "a.safetensors"),
        "deep": "b/c/d.safetensors",
        "hub": "org/name/d.safetensors",
    }
    file.write_text("".join(f'[models.{name}]\nsource = "{source}"\n' for name, source in sources.items()))
    read = {name: config.source for name, config in read_models_file(file).items()}
    here = str((tmp_path / "a.safetensors").resolve())
    assert read["bare"] == read["dot"] == read["absolute"] == here
    assert read["deep"] == str((tmp_path / "b/c/d.safetensors").resolve())
    assert read["hub"] == "org/name/d.safetensors"
    assert len(configs_to_serve("bare", None, file, None)) == len(sources)
    with pytest.raises(StartupError, match=r"source: none\.safetensors does not exist"):
        configs_to_serve("none.safetensors", None, None, None)
    [photo] = configs_to_serve(here, None, None, None)
    assert photo.name == "a"
    [hub] = configs_to_serve("org/name/v1.5.safetensors", None, None, None)
    assert (hub.name, hub.source) == ("v1.5", "org/name/v1.5.safetensors")


def test_configs_to_serve_rejects_missing_component(file: Path) -> None:
    (file.parent / "ink.safetensors").unlink()
    with pytest.raises(StartupError, match=r"model 'photo': loras.ink: .*/ink.safetensors does not exist"):
        configs_to_serve("photo", None, file, "photo")
    assert len(configs_to_serve("photo", None, file, None)) == 2, "the other model can be served"


def test_models_to_preload() -> None:
    served = ["photo", "large"]
    assert models_to_preload(None, served) == ["photo"]
    assert models_to_preload("", served) == []
    assert models_to_preload(" large,photo,large", served) == ["large", "photo"]
    with pytest.raises(StartupError, match=r"IMG2IMG_PRELOAD: unknown model 'tiny'; this worker serves: photo, large"):
        models_to_preload("tiny", served)
    assert models_to_preload("tiny,large", served, {"tiny"}) == ["large"], "a request has removed it"


def test_default_model_is_first_of_file(file: Path) -> None:
    def settings(**given: object) -> SharedSettings:
        return SharedSettings(_env_file=None, **given)  # type: ignore[call-arg, arg-type]

    assert settings(models_file=file).model == "photo"
    assert settings(models_file=file, model="org/large").model == "org/large"
    assert settings().model == "demo"
    with pytest.raises(ValueError, match="cannot read the model file"):
        settings(models_file=file.with_name("none.toml"))


def test_example_and_documentation_are_valid(tmp_path: Path) -> None:
    example = read_models_file(ROOT / "examples" / "models.toml")
    assert {"photo", "large"} <= set(example)
    documented = documented_toml()[0]
    assert tomllib.loads(documented)
    (tmp_path / "models.toml").write_text(documented)
    assert (
        read_models_file(tmp_path / "models.toml")["photo"].loras["ink"].source == f"{tmp_path}/loras/ink.safetensors"
    )


def documented_toml() -> list[str]:
    """Return the TOML blocks of docs/models.md."""
    return re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL)


def test_every_documented_block_is_valid() -> None:
    for text in documented_toml():
        block = tomllib.loads(text)
        # A block has tables of models, or only keys of one model.
        for config in block.get("models", {"photo": block}).values():
            assert ModelConfig.model_validate({"source": "x"} | config)


class CodeInPickle:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    ("name", "message"),
    [("ink.bin", "is not a safetensors file"), ("ink.safetensors", "cannot be read as safetensors")],
)
def test_resolve_weights_rejects_pickle_without_reading_it(tmp_path: Path, name: str, message: str) -> None:
    trace = tmp_path / "trace"
    (tmp_path / name).write_bytes(pickle.dumps(CodeInPickle(trace)))
    for source in (
        ComponentSource(source=str(tmp_path / name)),
        ComponentSource(source=str(tmp_path), weight_name=name),
    ):
        with pytest.raises(StartupError, match=f"LoRA: .*{message}"):
            resolve_weights(source, "LoRA")
    assert not trace.exists()


def test_resolve_weights_requires_weight_name_if_ambiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError, match="has 0 safetensors files"):
        resolve_weights(ComponentSource(source=str(tmp_path)), "LoRA")
    with pytest.raises(StartupError, match=r"none\.safetensors does not exist"):
        resolve_weights(ComponentSource(source=str(tmp_path), weight_name="none.safetensors"), "LoRA")
    with pytest.raises(StartupError, match="set `weight_name` to the file in org/adapter"):
        resolve_weights(ComponentSource(source="org/adapter"), "IP-Adapter")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        StartupError, match=r"LoRA: org/nothing: lora\.safetensors is not in the cache .* and HF_HUB_OFFLINE is set"
    ):
        resolve_weights(ComponentSource(source="org/nothing"), "LoRA", default="lora.safetensors")
