"""The `info` of a response: the parameters of a job as the web UI reports them."""

from typing import Any

from img2img.domain.infotext import infotext
from img2img.domain.job import JobRecord, JobStatus
from img2img.domain.sampler_names import web_ui_names
from img2img.domain.spec import GenerationSpec


def info_of(record: JobRecord) -> dict[str, Any]:
    """Return the parameters of a job that has ended. Images that were withheld are left out."""
    spec = record.spec
    assert isinstance(spec, GenerationSpec)
    prompt = getattr(spec, "prompt", "")
    made = [index for index in range(spec.num_images) if index not in record.withheld]
    seeds = [spec.image_seed(index) for index in made]
    subseeds = [spec.image_subseed(index) for index in made] if spec.subseed is not None else seeds
    width, height = spec.result_size
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(seeds),
        "negative_prompt": spec.negative_prompt,
        "all_negative_prompts": [spec.negative_prompt] * len(seeds),
        "seed": spec.seed,
        "all_seeds": seeds,
        "subseed": spec.seed if spec.subseed is None else spec.subseed,
        "all_subseeds": subseeds,
        "subseed_strength": spec.subseed_strength,
        "width": width,
        "height": height,
        "sampler_name": web_ui_names(spec.scheduler, spec.sigmas)[0],
        "cfg_scale": spec.guidance_scale,
        "steps": spec.num_inference_steps,
        "batch_size": spec.num_images,
        "restore_faces": False,
        "denoising_strength": getattr(spec, "strength", 1.0),
        "clip_skip": spec.clip_skip + 1,
        "sd_model_name": spec.model,
        "infotexts": [infotext(spec, spec.image_seed(index), spec.image_subseed(index)) for index in made],
        "styles": [],
        "index_of_first_image": 0,
        "job_id": record.id,
        "interrupted": record.status is JobStatus.CANCELLED,
    }
