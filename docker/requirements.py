"""`python docker/requirements.py EXTRA`: what the package needs with an extra of it, as requirements.

So that an image has its dependencies in a layer of their own, which only pyproject.toml and constraints.txt change.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
sys.stdout.write("\n".join([*project["dependencies"], *project["optional-dependencies"][sys.argv[1]]]) + "\n")
