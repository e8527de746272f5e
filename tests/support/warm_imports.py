"""What a worker imports, for the process that the reliability tests fork workers from. Imports only: no threads."""

import threading

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel  # noqa: F401
from tqdm.std import tqdm
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

import img2img.worker.__main__  # noqa: F401
import tests.support.models.tiny_models  # noqa: F401

tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed worker would leave behind
