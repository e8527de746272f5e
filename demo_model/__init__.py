"""The demo model: a small latent diffusion model trained from scratch on images rendered by this package."""
