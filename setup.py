"""Packages of the distribution: `app`, `worker` and `demo_model` of this repository are installed inside `img2img`.

Only `img2img` reaches site-packages, so the distribution can be installed beside a project that has its own `app`.
Everything else about the build is in pyproject.toml.
"""

from setuptools import find_packages, setup

FOLDERS = ("app", "worker", "demo_model")

setup(
    package_dir={f"img2img.{folder}": folder for folder in FOLDERS},
    packages=[
        *find_packages(include=["img2img", "img2img.*"]),
        *(f"img2img.{name}" for folder in FOLDERS for name in find_packages(include=[folder, f"{folder}.*"])),
    ],
)
