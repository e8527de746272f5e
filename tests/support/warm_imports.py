"""Imports of a worker, for the fork server of the reliability tests. Starts no threads."""

import threading

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel  # noqa: F401
from tqdm.std import tqdm
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

import img2img.worker.__main__  # noqa: F401
import tests.support.models.tiny_models  # noqa: F401

# The default lock is a system semaphore, which a killed worker would leave behind.
tqdm.set_lock(threading.RLock())
