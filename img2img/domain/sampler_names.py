"""Names of schedulers and sigmas in the AUTOMATIC1111 web UI and in ComfyUI."""

from img2img.domain.parameters import COMBINED_SCHEDULERS, Scheduler, Sigmas

# Samplers of the web UI. Schedulers that are not here have no equivalent there.
WEB_UI_SAMPLERS: dict[Scheduler, str] = {
    Scheduler.DPMPP_2M: "DPM++ 2M",
    Scheduler.DPMPP_SDE: "DPM++ SDE",
    Scheduler.DPMPP_2M_SDE: "DPM++ 2M SDE",
    Scheduler.DPMPP_2M_SDE_HEUN: "DPM++ 2M SDE Heun",
    Scheduler.DPMPP_2S_A: "DPM++ 2S a",
    Scheduler.DPMPP_3M_SDE: "DPM++ 3M SDE",
    Scheduler.EULER_A: "Euler a",
    Scheduler.EULER: "Euler",
    Scheduler.LMS: "LMS",
    Scheduler.HEUN: "Heun",
    Scheduler.DPM2: "DPM2",
    Scheduler.DPM2_A: "DPM2 a",
    Scheduler.DDIM: "DDIM",
    Scheduler.PNDM: "PLMS",
    Scheduler.UNIPC: "UniPC",
    Scheduler.LCM: "LCM",
}
COMFYUI_SAMPLERS: dict[Scheduler, str] = {
    Scheduler.DPMPP_2M: "dpmpp_2m",
    Scheduler.DPMPP_SDE: "dpmpp_sde",
    Scheduler.DPMPP_2M_SDE: "dpmpp_2m_sde",
    Scheduler.DPMPP_2M_SDE_HEUN: "dpmpp_2m_sde_heun",
    Scheduler.DPMPP_2S_A: "dpmpp_2s_ancestral",
    Scheduler.DPMPP_3M_SDE: "dpmpp_3m_sde",
    Scheduler.EULER_A: "euler_ancestral",
    Scheduler.EULER: "euler",
    Scheduler.LMS: "lms",
    Scheduler.HEUN: "heun",
    Scheduler.DPM2: "dpm_2",
    Scheduler.DPM2_A: "dpm_2_ancestral",
    Scheduler.DDIM: "ddim",
    Scheduler.DDPM: "ddpm",
    Scheduler.UNIPC: "uni_pc",
    Scheduler.DEIS: "deis",
    Scheduler.LCM: "lcm",
}
# Schedule types of the web UI. ComfyUI has the names of `Sigmas`.
WEB_UI_SCHEDULES: dict[Sigmas, str] = {
    Sigmas.KARRAS: "Karras",
    Sigmas.EXPONENTIAL: "Exponential",
    Sigmas.BETA: "Beta",
    Sigmas.NORMAL: "Normal",
    Sigmas.SIMPLE: "Simple",
    Sigmas.SGM_UNIFORM: "SGM Uniform",
    Sigmas.DDIM_UNIFORM: "DDIM",
}
# The schedule of the web UI that is the one of the sampler there, and the one with the sigmas of the scheduler itself.
AUTOMATIC, UNIFORM = "Automatic", "Uniform"
# Sigmas of samplers in the web UI if the schedule is `Automatic`. Of the others, those of the scheduler itself.
AUTOMATIC_SIGMAS: dict[Scheduler, Sigmas] = {
    Scheduler.DPMPP_2M: Sigmas.KARRAS,
    Scheduler.DPMPP_SDE: Sigmas.KARRAS,
    Scheduler.DPMPP_2S_A: Sigmas.KARRAS,
    Scheduler.DPM2: Sigmas.KARRAS,
    Scheduler.DPM2_A: Sigmas.KARRAS,
    Scheduler.DPMPP_2M_SDE: Sigmas.EXPONENTIAL,
    Scheduler.DPMPP_2M_SDE_HEUN: Sigmas.EXPONENTIAL,
    Scheduler.DPMPP_3M_SDE: Sigmas.EXPONENTIAL,
}


def web_ui_names(scheduler: Scheduler, sigmas: Sigmas | None) -> tuple[str, str]:
    """Return the sampler and the schedule type by the names of the web UI, or by ours if it has no such sampler."""
    plain, included = COMBINED_SCHEDULERS.get(scheduler, (scheduler, None))
    sampler = WEB_UI_SAMPLERS.get(plain, plain.value)
    own = sigmas or included
    if own is None:
        return sampler, UNIFORM if plain in AUTOMATIC_SIGMAS else AUTOMATIC
    return sampler, WEB_UI_SCHEDULES[own]
