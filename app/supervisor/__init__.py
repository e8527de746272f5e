"""Runs the processes of the service on one machine: `img2img serve`."""
