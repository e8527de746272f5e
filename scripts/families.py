"""Writes docs/families.md: each pipeline class of diffusers that takes an image, and how it is served.

The classes are those of the installed diffusers. The measurements are made on tiny random models.
"""

import inspect
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline
from diffusers.modular_pipelines.flux3.prompt_upsampler import MAX_REFERENCES

from img2img.domain.parameters import Task
from img2img.worker.errors import StartupError
from img2img.worker.pipelines.call_signature import read_call
from img2img.worker.pipelines.conditioning.upscalers import FACTORS
from img2img.worker.pipelines.families import FAMILIES, family_of
from img2img.worker.pipelines.modular_blocks import is_modular, modular_tasks
from tests.support.family_matrix import MODELS, WITH_TORCHVISION, Row, measure
from tests.support.models.tiny_modular import ORDINARY

FILE = Path(__file__).parents[1] / "docs" / "families.md"
INTRO = """# Families

Every pipeline class of diffusers {version} whose call takes an image. This page is written by `make families`, which
runs each class on a tiny model with random weights, on a CPU in `float32`. A test compares it with the
installed release.

Classes of a *family* have defaults, sizes, LoRAs and ControlNets of their own ([Model file](models.md)). All others are
served by the signature of their call: its arguments determine the tasks, the steps and the guidance. So a class of a
later release is served without a change of this service. Such a model has the settings of its own files, no ControlNets
and no previews.
"""
SERVED = """
## Served

*Shared passes*: images of several jobs are in one forward pass. Before the first one, the engine compares two rows
alone, together and in exchanged order; where they depend on each other, or the call changes modules that jobs share,
jobs run one by one (`batching` in the `statuses` of `GET /models`). The differences are the largest ones of a channel,
of 255, from the pipeline called directly: of a job alone, and of jobs in company.

| class | family | tasks | shared passes | alone | in company |
|---|---|---|---|---|---|
"""
NOT_MEASURED = """
## Served, but not measured

There is no tiny model for these. What is known is their signature.

| class | tasks | remark |
|---|---|---|
"""
PARTS = """
## Parts of a model

The control images, factors and adapters of these belong to a model of another class, as keys of its entry in the
[model file](models.md).

| class | key |
|---|---|
"""
REFUSED = """
## Not served

A model of such a class is refused at its start, with the reason.

| class | reason |
|---|---|
"""
PACKAGES = """
## Served with another package

Of these diffusers has only a name here, because a package is not installed. They are served by their signature with it.

| class | packages |
|---|---|
"""
VIDEOS = """
## Videos

These make videos, and are refused.

| class |
|---|
"""
MODULAR = """
## Modular pipelines

A model whose index is `modular_model_index.json` is served by the inputs of its blocks, in the same way: an image with
`strength` is `img2img`, one without is `edit`, and a `mask_image` is `inpaint`. FLUX.3 and Anima are such models. The
scale of the guider is the `guidance_scale` of requests. Jobs share passes, unless the guider or a block changes
modules. Steps are counted after each pass of the loop of the blocks, and a job can be stopped before each call of a
module.

- All components are read from the folders of the model. FLUX.3 needs no prompt upsampler: without its folder, prompts
  are encoded as given, and with it, an edit has at most {references} images.
- Blocks that are Python code of the model are refused, as are ControlNets and image prompts of such models.
- Anima needs torchvision, as does the processor of FLUX.3 (`Qwen3VLProcessor`): `pip install torchvision`.
- A model that also has a `model_index.json` is served by that.

*Compared*: a test compares jobs with diffusers' `ModularPipeline` on a tiny model, pixel by pixel.

| class | tasks | compared |
|---|---|---|
"""
# Those of tests/engine/test_modular.py.
COMPARED = ("AnimaModularPipeline", "Flux3DistilledModularPipeline", "Flux3ModularPipeline", *ORDINARY)
IMAGE = ("image", "images", "input_images", "control_image", "reference_image", "image_embeds", "example_image")


def classes() -> dict[str, type[DiffusionPipeline]]:
    """Return the pipelines of diffusers whose call takes an image, by name."""
    found = {}
    for name in sorted(dir(diffusers)):
        kind = getattr(diffusers, name)
        if name.endswith("Pipeline") and inspect.isclass(kind) and issubclass(kind, DiffusionPipeline):
            parameters = inspect.signature(kind.__call__).parameters
            if any(argument in parameters for argument in IMAGE):
                found[name] = kind
    return found


def substitutes() -> dict[str, str]:
    """Return the packages that image-to-image classes without a signature need, by class."""
    found = {}
    for name in sorted(dir(diffusers)):
        packages = getattr(getattr(diffusers, name), "_backends", ())
        if re.search(r"(Img2Img|Inpaint|Edit)Pipeline$", name) and packages and not name.startswith("Onnx"):
            found[name] = ", ".join(package for package in packages if package not in ("torch", "transformers"))
    return found


def text(rows: Mapping[str, Row]) -> str:
    """Return the page.

    Args:
        rows: the measurements, by class.
    """
    served, unmeasured, parts, refused, videos = [], [], [], [], []
    for name, kind in classes().items():
        family = family_of(name)
        if name in rows:
            served.append(_served(name, family.name if family else "by signature", rows[name]))
        elif key := _key(kind):
            parts.append(f"| `{name}` | {key} |")
        elif family is not None:
            tasks = tuple(task for task, other in family.pipelines.items() if other is kind)
            stock = ", ".join(f"`{other.__name__}`" for other in family.pipelines.values())
            remark = f"family {family.name}" if tasks else f"family {family.name}: served by {stock}"
            unmeasured.append(f"| `{name}` | {_names(tasks or tuple(family.pipelines))} | {remark} |")
        else:
            try:
                call = read_call(kind)
            except StartupError as error:
                if "videos" in str(error):
                    videos.append(f"`{name}`")
                else:
                    refused.append(f"| `{name}` | {error} |")
            else:
                remark = "needs torchvision" if name in WITH_TORCHVISION else ""
                unmeasured.append(f"| `{name}` | {_names(call.tasks)} | {remark} |")
    parts_of_page = [
        INTRO.format(version=re.sub(r"\.\d+$", "", diffusers.__version__)),
        SERVED + _lines(served),
        NOT_MEASURED + _lines(unmeasured),
        MODULAR.format(references=MAX_REFERENCES) + _lines(list(modular_rows())),
        PARTS + _lines(parts),
        REFUSED + _lines(refused),
        PACKAGES + _lines([f"| `{name}` | {packages} |" for name, packages in substitutes().items()]),
        VIDEOS + _lines([f"| {name} |" for name in videos]),
    ]
    return "".join(parts_of_page)


def modular_rows() -> Iterator[str]:
    """Yield a row for each modular pipeline of diffusers that takes an image."""
    for name in sorted(dir(diffusers)):
        if not is_modular(name) or name == "ModularPipeline":
            continue
        try:
            tasks = modular_tasks(name)
        except StartupError:
            continue
        yield f"| `{name}` | {_names(tasks)} | {'yes' if name in COMPARED else 'no'} |"


def rows_of(page: str) -> dict[str, Row]:
    """Return the measurements that a page has, by class."""
    line = re.compile(r"\| `(\w+)` \| [^|]+ \| ([^|]+) \| (yes|no) \| (\d+) \| (\d+) \|")
    return {
        name: Row(tuple(map(Task, re.findall(r"`(\w+)`", tasks))), merges == "yes", int(alone), int(together))
        for name, tasks, merges, alone, together in line.findall(page)
    }


def _served(name: str, family: str, row: Row) -> str:
    merges = "yes" if row.merges else "no"
    return f"| `{name}` | {family} | {_names(row.tasks)} | {merges} | {row.alone} | {row.together} |"


def _key(kind: type[DiffusionPipeline]) -> str | None:
    """Return the key of a model by which a class is used."""
    if kind.__name__ in FACTORS:
        return f"`upscale`, factor {FACTORS[kind.__name__]}"
    names = dict.fromkeys(family.name for family in FAMILIES if kind in family.controlnet_pipelines.values())
    if names and "ControlNet" in kind.__name__:
        return f"`controlnets` of {', '.join(names)}"
    return "`ip_adapter` of flux" if kind is diffusers.FluxPriorReduxPipeline else None


def _names(tasks: tuple[Task, ...]) -> str:
    return ", ".join(f"`{task}`" for task in tasks)


def _lines(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def measured() -> Iterator[tuple[str, Row]]:
    """Yield the measurements of all classes that have a tiny model."""
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            yield name, measure(name, Path(folder))


def main() -> None:
    FILE.write_text(text(dict(measured())), "utf-8")


if __name__ == "__main__":
    main()
