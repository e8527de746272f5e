"""The GPU side of img2img. Never imports a web framework, nor anything of `app`."""
