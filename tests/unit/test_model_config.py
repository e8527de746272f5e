"""models.toml: what is read from it, and what is said where it is wrong. No model is loaded here."""

import pickle
import tomllib
from pathlib import Path

import pytest

from img2img.domain.spec import Scheduler
from img2img.settings import SharedSettings
from img2img.worker.errors import StartupError
from img2img.worker.pipelines.loading.model_config import (
    ComponentSource,
    config_for,
    configs_to_serve,
    read_models_file,
)
from img2img.worker.pipelines.loading.weights import resolve_weights

ROOT = Path(__file__).parents[2]


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


def test_entries_have_their_names_defaults_and_parts(file: Path) -> None:
    models = read_models_file(file)
    assert list(models) == ["photo", "org/large"]
    photo, large = models.values()
    assert (photo.name, photo.source) == ("photo", str(file.parent / "photo"))
    assert (photo.steps, photo.guidance_scale, photo.scheduler) == (25, None, Scheduler.EULER)
    assert photo.loras == {"ink": ComponentSource(source=str(file.parent / "ink.safetensors"))}
    assert photo.ip_adapter == ComponentSource(source="org/adapter", subfolder="models", weight_name="a.safetensors")
    assert (large.source, large.revision, large.variant) == ("org/large", "abc", "fp16")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[models.a]\nsource = 'x'\nlora = {}", "models.a.lora: unknown key"),
        ("[models.a]\nsource = 'x'\nloras.ink = { source = 'y', file = 'z' }", "models.a.loras.ink.file: unknown key"),
        ("[models.a]\nsource = 'x'\nscheduler = 'magic'", "models.a.scheduler: Input should be 'ddim'"),
        ("[models.a]\nsource = 'x'\nsteps = 0", "models.a.steps: Input should be greater than or equal to 1, got 0"),
        ("[models.a]\nsteps = 3", "models.a.source: Field required"),
        ("[models.'a b']\nsource = 'x'", "models.a b: String should match pattern"),
        ("[model.a]\nsource = 'x'", "models: Field required"),
        ("[models]", "models: Dictionary should have at least 1 item"),
        ("[models.a", "cannot read the model file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "models.toml").write_text(text)
    with pytest.raises(StartupError) as refused:
        read_models_file(tmp_path / "models.toml")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_worker_serves_all_of_the_file_or_what_it_is_told(file: Path) -> None:
    def served(names: str | None) -> list[str]:
        return [entry.name for entry in configs_to_serve("photo", None, file, names)]

    assert served(None) == ["photo", "org/large"]
    assert served("org/large") == ["org/large"]
    assert served(" photo , demo,photo") == ["photo", "demo"]
    for names, said in (
        ("photo,nope", "unknown model 'nope'; known: demo, org/large, photo"),
        (" , ", "one or more models"),
    ):
        with pytest.raises(StartupError, match=said):
            served(names)
    with pytest.raises(StartupError, match="IMG2IMG_REVISION"):
        configs_to_serve("photo", "abc", file, None)
    with pytest.raises(StartupError, match="cannot read the model file"):
        configs_to_serve("photo", None, file.with_name("none.toml"), None)


def test_without_a_file_it_serves_the_one_model(tmp_path: Path) -> None:
    [hub] = configs_to_serve("org/name", "abc", None, None)
    assert (hub.name, hub.source, hub.revision) == ("org/name", "org/name", "abc")
    [demo] = configs_to_serve("demo", None, None, None)
    assert demo == config_for("demo")
    assert Path(demo.source, "model_index.json").is_file()
    with pytest.raises(StartupError, match="source: /no/such/folder does not exist"):
        configs_to_serve("/no/such/folder", None, None, None)


def test_a_part_that_is_not_there_is_missed_before_anything_loads(file: Path) -> None:
    (file.parent / "ink.safetensors").unlink()
    with pytest.raises(StartupError, match=r"model 'photo': loras.ink: .*/ink.safetensors does not exist"):
        configs_to_serve("photo", None, file, None)
    assert len(configs_to_serve("photo", None, file, "org/large")) == 1, "what is not served need not be here"


def test_requests_get_the_first_model_of_the_file_unless_told_otherwise(file: Path) -> None:
    def settings(**given: object) -> SharedSettings:
        return SharedSettings(_env_file=None, **given)  # type: ignore[call-arg, arg-type]

    assert settings(models_file=file).model == "photo"
    assert settings(models_file=file, model="org/large").model == "org/large"
    assert settings().model == "demo"
    with pytest.raises(ValueError, match="cannot read the model file"):
        settings(models_file=file.with_name("none.toml"))


def test_the_example_and_the_manual_are_such_files(tmp_path: Path) -> None:
    example = read_models_file(ROOT / "examples" / "models.toml")
    assert {"photo", "large"} <= set(example)
    manual = (ROOT / "docs" / "models.md").read_text().split("```toml\n")[1].split("```")[0]
    assert tomllib.loads(manual)
    (tmp_path / "models.toml").write_text(manual)
    assert (
        read_models_file(tmp_path / "models.toml")["photo"].loras["ink"].source == f"{tmp_path}/loras/ink.safetensors"
    )


class RunsWhenRead:
    """A pickle that leaves a trace when someone reads it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    ("name", "said"),
    [("ink.bin", "is not a safetensors file"), ("ink.safetensors", "cannot be read as safetensors")],
)
def test_a_pickle_is_refused_and_not_read(tmp_path: Path, name: str, said: str) -> None:
    trace = tmp_path / "trace"
    (tmp_path / name).write_bytes(pickle.dumps(RunsWhenRead(trace)))
    for part in (ComponentSource(source=str(tmp_path / name)), ComponentSource(source=str(tmp_path), weight_name=name)):
        with pytest.raises(StartupError, match=f"LoRA: .*{said}"):
            resolve_weights(part, "LoRA")
    assert not trace.exists()


def test_a_file_is_named_where_a_source_holds_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError, match="has 0 safetensors files"):
        resolve_weights(ComponentSource(source=str(tmp_path)), "LoRA")
    with pytest.raises(StartupError, match="No such file"):
        resolve_weights(ComponentSource(source=str(tmp_path), weight_name="none.safetensors"), "LoRA")
    with pytest.raises(StartupError, match="set `weight_name` to the file in org/adapter"):
        resolve_weights(ComponentSource(source="org/adapter"), "IP-Adapter")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StartupError, match="LoRA: cannot download org/nothing: "):
        resolve_weights(ComponentSource(source="org/nothing"), "LoRA", default="lora.safetensors")
