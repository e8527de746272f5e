"""Write the tables in docs/schedulers.md from the code: `make sampler-table`."""

from pathlib import Path

from img2img.domain.parameters import COMBINED_SCHEDULERS, FLOW_SCHEDULERS, Scheduler, Sigmas
from img2img.domain.sampler_names import AUTOMATIC_SIGMAS, COMFYUI_SAMPLERS, WEB_UI_SAMPLERS, WEB_UI_SCHEDULES
from img2img.worker.pipelines.scheduler_kinds import SCHEDULERS, SIGMAS, sigmas_of

PAGE = Path(__file__).parents[1] / "docs" / "schedulers.md"
BEGIN, END = "<!-- tables of names: make sampler-table -->\n", "<!-- end of the tables of names -->"


def tables() -> str:
    """Return the Markdown tables of schedulers and of sigmas."""
    supported = sigmas_of(Scheduler)
    rows = [
        "| `scheduler` | diffusers | AUTOMATIC1111 | ComfyUI | `sigmas` |",
        "|---|---|---|---|---|",
    ]
    for name, (class_name, settings) in SCHEDULERS.items():
        if name in COMBINED_SCHEDULERS:
            plain, sigmas = COMBINED_SCHEDULERS[name]
            rows.append(f"| `{name}` | the same as `{plain}` with `{sigmas}` | | | included |")
            continue
        given = [
            f"`{key}={settings[key]!r}`"
            for key in ("algorithm_type", "solver_order", "solver_type")
            if _tells(name, key)
        ]
        web_ui = WEB_UI_SAMPLERS.get(name, "")
        if name in AUTOMATIC_SIGMAS:
            web_ui += f"; Automatic: `{AUTOMATIC_SIGMAS[name]}`"
        values = supported.get(name, ())
        taken = "all" if len(values) == len(Sigmas) else ", ".join(f"`{value}`" for value in values) or "none"
        comfyui = f"`{COMFYUI_SAMPLERS[name]}`" if name in COMFYUI_SAMPLERS else ""
        label = f"`{name}`" + (" (flow matching)" if name in FLOW_SCHEDULERS else "")
        rows.append(f"| {label} | {' '.join([class_name, *given])} | {web_ui} | {comfyui} | {taken} |")
    rows += ["", "| `sigmas`, also in ComfyUI | diffusers | AUTOMATIC1111 |", "|---|---|---|"]
    for value, settings in SIGMAS.items():
        [(key, setting)] = settings.items()
        rows.append(f"| `{value}` | `{key}={setting!r}` | {WEB_UI_SCHEDULES[value]} |")
    return "\n".join(rows) + "\n"


def _tells(name: Scheduler, key: str) -> bool:
    """Return whether schedulers of the class differ in a setting."""
    class_name, settings = SCHEDULERS[name]
    values = {repr(other[key]) for kind, other in SCHEDULERS.values() if kind == class_name and key in other}
    return key in settings and len(values) > 1


def updated(text: str) -> str:
    """Return the page with current tables."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has no marker {END!r}"
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
