"""`python docker/requirements.py EXTRA ...`: what the package needs with these extras of it, as requirements.

So that an image has its dependencies in a layer of their own, which only pyproject.toml and constraints.txt change.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [requirement for extra in sys.argv[1:] for requirement in project["optional-dependencies"][extra]]
sys.stdout.write("\n".join([*project["dependencies"], *extras]) + "\n")
