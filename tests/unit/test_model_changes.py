"""Changes of models by request, the sources they may name, and files and folders that are followed."""

import os
import typing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from img2img.app.backends.default_model import DefaultModel
from img2img.app.compat.a1111.prompt import parse_prompt
from img2img.domain.conditioning import Lora
from img2img.domain.model_change import ModelChange, apply_changes
from img2img.domain.model_config import ComponentSource, ModelConfig, UpscalerSource
from img2img.file_watch import FileWatch
from img2img.model_sources import InvalidSource, parse_folders, within_folders
from img2img.settings import SharedSettings
from img2img.worker.errors import StartupError
from img2img.worker.pipelines.loading.lora_folder import LoraFolders
from img2img.worker.pipelines.loading.served_models import ModelSelection

PHOTO = ModelConfig(source="org/photo", loras={"ink": ComponentSource(source="org/ink")})
PEN = ComponentSource(source="org/pen")


def test_changes_take_precedence_over_the_file() -> None:
    file = {"photo": PHOTO, "other": PHOTO}
    added = {"photo": ModelChange(model=ModelConfig(source="org/new")), "more": ModelChange(model=PHOTO)}
    models = apply_changes(file, added)
    assert list(models) == ["photo", "other", "more"]
    assert (models["photo"].source, models["photo"].loras, models["more"].name) == ("org/new", {}, "more")
    assert list(apply_changes(file, {"photo": ModelChange(removed=True)})) == ["other"]
    loras = apply_changes(file, {"photo": ModelChange(loras={"ink": None, "pen": PEN})})["photo"].loras
    assert loras == {"pen": PEN}
    # LoRAs of a model that only the file of another worker has.
    assert apply_changes({}, {"photo": ModelChange(loras={"pen": PEN})}) == {}


def test_worker_serves_only_the_names_that_it_is_to_serve() -> None:
    changes = {"added": ModelChange(model=PHOTO), "photo": ModelChange(removed=True)}
    selection = ModelSelection("added,photo", ()).select({"photo": PHOTO, "other": PHOTO}, changes)
    assert list(selection.configs) == ["added"]
    assert selection.removed["photo"].source == "org/photo"
    assert list(ModelSelection(None, ()).select({"photo": PHOTO}, changes).configs) == ["added"]
    with pytest.raises(StartupError, match="unknown model 'nope'"):
        ModelSelection("nope", ()).check({"photo": PHOTO}, changes)


def test_change_that_is_not_permitted_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    changes = {"photo": ModelChange(model=ModelConfig(source="/etc/photo"))}
    selection = ModelSelection(None, (tmp_path,)).select({"photo": PHOTO}, changes)
    assert selection.configs["photo"].source == "org/photo"
    assert "IMG2IMG_MODEL_FOLDERS" in selection.refused["photo"]


def test_paths_are_resolved_within_the_folders(tmp_path: Path) -> None:
    folders = parse_folders(f"{tmp_path}, {tmp_path}/../loras")
    (tmp_path / "link").symlink_to("/")

    def resolved(source: str) -> str:
        return within_folders(ModelConfig(source=source), folders).source

    assert resolved("./photo") == resolved("./x/../photo") == f"{tmp_path}/photo"
    assert resolved("photo.safetensors") == f"{tmp_path}/photo.safetensors"
    assert resolved(f"{tmp_path.parent}/loras/ink") == f"{tmp_path.parent}/loras/ink"
    assert resolved("./link/photo") == f"{tmp_path}/link/photo", "links are those of the operator"
    assert resolved("org/photo") == "org/photo"
    for source in ("../photo", "./link/../../photo", f"{tmp_path}-other/photo", "/", "./a\0b"):
        with pytest.raises(InvalidSource):
            resolved(source)


def test_hub_id_that_is_a_folder_of_the_worker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "photo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidSource, match=r"start with \./"):
        within_folders(PHOTO, (tmp_path,))


def test_every_key_that_could_name_a_file_is_known() -> None:
    """A new key with a path or a name of a file has to be checked by `model_sources`."""
    texts = {
        name
        for name, field in ModelConfig.model_fields.items()
        if {str, Path} & {field.annotation, *typing.get_args(field.annotation)}
    }
    # Names of components, of a class, of a kernel, and a text for people.
    assert texts - {"quantize", "pipeline", "attention", "description"} == {
        "name",
        "source",
        "revision",
        "variant",
        "lora_folder",
        "offload_folder",
    }
    parts = set(UpscalerSource.model_fields)
    assert parts == {"source", "revision", "subfolder", "weight_name", "steps", "guidance_scale"}


def test_file_counts_as_changed_when_it_stays_the_same(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text("one")
    watch = FileWatch(file)
    assert not watch.has_changed()
    seen = []
    for text in ("o", "on", None, None, None):
        if text:
            file.write_text(text)
        seen.append(watch.has_changed())
    assert seen == [False, False, True, False, False]
    file.unlink()
    assert [watch.has_changed() for _ in range(3)] == [False, True, False]


def lora(file: Path, rows: int = 4) -> Path:
    weights = {"lora_A": np.zeros((rows, 4), np.float32), "lora_B": np.zeros((4, rows), np.float32)}
    save_file({f"unet.down.{name}.weight": values for name, values in weights.items()}, file)
    return file


def test_lora_folder_has_complete_loras_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = ModelConfig(name="photo", source="org/photo", lora_folder=str(tmp_path), loras={"pen": PEN})
    folders = LoraFolders()
    content = lora(tmp_path / "ink.safetensors").read_bytes()
    lora(tmp_path / "pen.safetensors")
    lora(tmp_path / ".hidden.safetensors")
    lora(tmp_path / "____.safetensors")
    save_file({"encoder.down.0.weight": np.zeros(2, np.float32)}, tmp_path / "vae.safetensors")
    (tmp_path / "half.safetensors").write_bytes(content[:-8])
    (tmp_path / "dangling.safetensors").symlink_to("nowhere")
    for _ in range(3):
        loras = folders.expand(config).loras
        assert (list(loras), loras["ink"].source) == (["ink", "pen"], str(tmp_path / "ink.safetensors"))
        assert loras["pen"] == PEN
    assert sorted(record.args[0].name for record in caplog.records if record.args) == [  # type: ignore[index,union-attr]
        "____.safetensors", "half.safetensors", "vae.safetensors",
    ]  # fmt: skip
    assert list(folders.expand(config, {"ink"}).loras) == ["pen"]

    # A file that is replaced counts as it was until it stays the same.
    before = folders.expand(config)
    lora(tmp_path / "ink.safetensors", rows=8)
    (tmp_path / "half.safetensors").write_bytes(content)
    assert folders.expand(config) == before
    after = folders.expand(config).loras
    assert (list(after), after["ink"] == before.loras["ink"]) == (["half", "ink", "pen"], False)

    (tmp_path / "ink.safetensors").unlink()
    assert list(folders.expand(config).loras) == ["half", "pen"]


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("My Style v2", "My Style v2"),
        ("ink_(v1.5)+pen", "ink_(v1.5)+pen"),
        ("Café, très beau!", "Caf- tr-s beau"),
        ("墨絵 sumi", "sumi"),
        (" [old] pen ", "old- pen"),
    ],
)
def test_lora_of_a_folder_is_named_by_its_file(tmp_path: Path, stem: str, name: str) -> None:
    lora(tmp_path / f"{stem}.safetensors")
    config = ModelConfig(name="photo", source="org/photo", lora_folder=str(tmp_path))
    assert list(LoraFolders().expand(config).loras) == [name]
    assert parse_prompt("prompt", f"a house <lora:{name}:0.8>").loras == ((name, 0.8),)
    assert Lora(name=name).name == name


def test_lora_that_cannot_be_loaded_is_left_out_until_it_changes(tmp_path: Path) -> None:
    folder, other = tmp_path / "loras", tmp_path / "other.safetensors"
    folder.mkdir()
    for file in (folder / "ink.safetensors", other):
        lora(file)
    sources = {"other": ComponentSource(source=str(other)), "hub": ComponentSource(source="org/hub")}
    models = {"photo": ModelConfig(name="photo", source="org/photo", lora_folder=str(folder), loras=sources)}
    selection = ModelSelection(None, ())

    def names() -> list[str]:
        return list(selection.select(models, {}).configs["photo"].loras)

    assert names() == ["ink", "other", "hub"]
    for name in names():
        selection.reject_lora(selection.select(models, {}).configs["photo"], name, "damaged")
    assert names() == []
    assert selection.select(models, {}).loras_left_out == {
        "photo": {"ink": "damaged", "other": "damaged", "hub": "damaged"}
    }
    for file in (folder / "ink.safetensors", other):
        os.utime(file, (1, 1))
    names()  # a file of a folder is used when it stays the same
    assert names() == ["ink", "other"]
    models = {"photo": models["photo"].model_copy(update={"loras": {}})}
    assert names() == ["ink"]
    models = {"photo": models["photo"].model_copy(update={"loras": sources})}
    assert names() == ["ink", "other", "hub"]


def test_default_model_follows_the_file_once_the_model_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.app.backends.default_model.CHECK_S", -1)
    file, known = tmp_path / "models.toml", {"one"}
    file.write_text("[models.one]")
    default = DefaultModel(SharedSettings(_env_file=None, models_file=file), known.__contains__)
    seen = [default.name]
    for text in ("[models.two]\n[models.one]", "[models.", "[models.three]"):
        file.write_text(text)
        seen.append(default.name)
    known.add("three")
    assert [*seen, default.name] == ["one", "one", "one", "one", "three"]
    explicit = DefaultModel(SharedSettings(_env_file=None, models_file=file, model="one"), known.__contains__)
    file.write_text("[models.two]")
    assert explicit.name == "one"
