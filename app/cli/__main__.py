"""`python -m img2img.app.cli`."""

from . import main

main()
