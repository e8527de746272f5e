"""The web UI's prompt language and names of samplers."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from img2img.app.compat.a1111.prompt import WebUIPrompt, parse_prompt
from img2img.app.compat.a1111.samplers import find_scheduler
from img2img.domain.infotext import infotext
from img2img.domain.parameters import Scheduler, Sigmas
from img2img.domain.sampler_names import COMFYUI_SAMPLERS, WEB_UI_SAMPLERS, WEB_UI_SCHEDULES, web_ui_names
from img2img.errors import ParameterError
from img2img.worker.pipelines.conditioning.prompt_embeddings import parse_weighted
from tests.support.model_cards import CARD, PLAIN
from tests.support.specs import make_spec


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("", ""),
        ("a red house, 12:30 :)", "a red house, 12:30 :)"),
        (r"a photo \(35mm\) of \[it\] C:\x", r"a photo (35mm) of [it] C:\x"),
        ("(a:1.0) b <3", "a b <3"),
    ],
)
def test_prompt_without_weights(prompt: str, text: str) -> None:
    parsed = parse_prompt("prompt", prompt)
    assert (parsed.is_weighted, parsed.text(weighted=False)) == (False, text)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a (red:1.5) house", "a (red:1.5) house"),
        ("((red)) [x] y", "(red:1.21) (x:0.9091) y"),
        ("(a (b:2) c)", "(a:1.1) (b:2.2) (c:1.1)"),
        ("a (b", "a (b:1.1)"),
        ("[[[a", "(a:0.7513)"),
        ("(a: .5 )", "(a:0.5)"),
        ("[a: b]", "(a: b:0.9091)"),
        (r"\(a\) (b:2)", r"\(a\) (b:2)"),
        (r"(a \(b\):2) C:\x", r"(a \(b\):2) C:\\x"),
        ("a house BREAK a tree", "a house BREAK a tree"),
        ("(a BREAK b:2)", "(a:2) BREAK (b:2)"),
    ],
)
def test_prompt_with_weights(prompt: str, text: str) -> None:
    parsed = parse_prompt("prompt", prompt)
    assert (parsed.is_weighted, parsed.text(weighted=True)) == (True, text)


def test_lora_tags() -> None:
    parsed = parse_prompt("prompt", "<lora:ink:0.8> a house <lora:line><lora:x:-1:-1>")
    assert parsed == WebUIPrompt((("a house", 1.0),), (("ink", 0.8), ("line", 1.0), ("x", -1.0)))


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("[cat:dog:0.5]", "prompt editing"),
        ("a [dog:0.5]", "prompt editing"),
        ("[cat|dog]", "prompt editing"),
        ("a house AND a tree", "AND"),
        ("<hypernet:x:1>", "<hypernet:...>"),
        ("<lyco:x:1>", "<lyco:...>"),
        ("<lora:x:high>", "LoRA tag"),
        ("<lora:x:1:0.5>", "LoRA tag"),
        ("(" * 40, "nested"),
    ],
)
def test_syntax_without_an_equivalent_is_refused_by_name(prompt: str, name: str) -> None:
    with pytest.raises(ParameterError, match=name) as refused:
        parse_prompt("negative_prompt", prompt)
    assert refused.value.field == "negative_prompt"


@given(st.text(alphabet="a1.:()[]\\<>| ", max_size=40))
def test_worker_reads_the_weights_of_the_web_ui(prompt: str) -> None:
    with suppress(ParameterError):
        parsed = parse_prompt("prompt", prompt)
        [fragments] = parse_weighted(parsed.text(weighted=True))
        weighted = [(piece.strip(), weight) for piece, weight in parsed.fragments if piece.strip() and weight != 1]
        assert [(piece, weight) for piece, weight in fragments if weight != 1] == weighted
        text = "".join(piece for piece, _ in parsed.fragments)
        assert "".join("".join(piece for piece, _ in fragments).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
        ("a (b:2)\nBREAK c", [[("a ", 1.0), ("b", 2.0)], [("c", 1.0)]]),
        ("a BREAKING break", [[("a BREAKING break", 1.0)]]),
        ("BREAK", [[("", 1.0)], [("", 1.0)]]),
        (r"\(a:2\) (b\):0.5)", [[("(a:2) ", 1.0), ("b)", 0.5)]]),
    ],
)
def test_parts_and_weights(text: str, parts: list[list[tuple[str, float]]]) -> None:
    assert parse_weighted(text) == parts


@given(st.text(alphabet="ab()[]\\: 1.", max_size=30))
def test_text_of_results_is_read_back(prompt: str) -> None:
    text = infotext(make_spec(prompt=prompt), 1).rpartition("\n")[0]
    parsed = parse_prompt("prompt", text)
    assert (parsed.is_weighted, parsed.text(weighted=False)) == (False, prompt)


@given(st.text(alphabet="ab()[]\\: 1.", max_size=30))
def test_weighted_text_of_results_is_read_back(prompt: str) -> None:
    text = infotext(make_spec(prompt=prompt, prompt_weighting=True), 1).rpartition("\n")[0]
    with suppress(ParameterError):
        read_back = parse_weighted(parse_prompt("prompt", text).text(weighted=True))
        [written] = parse_weighted(prompt)
        assert "".join(piece for piece, _ in read_back[0]).split() == "".join(piece for piece, _ in written).split()


TAKING = CARD.model_copy(
    update={
        "scheduler_sigmas": {
            **dict.fromkeys(("euler", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "lms", "dpm2_a"), tuple(Sigmas)),
            "euler_a": (Sigmas.NORMAL, Sigmas.SIMPLE, Sigmas.SGM_UNIFORM, Sigmas.DDIM_UNIFORM),
            "flow_euler": (Sigmas.KARRAS, Sigmas.BETA),
        }
    }
)


@pytest.mark.parametrize(
    ("sampler", "schedule", "names"),
    [
        (None, None, (None, None)),
        ("", "Automatic", (None, None)),
        (None, "Karras", (None, "karras")),
        ("Euler", None, ("euler", None)),
        ("Euler", "Uniform", ("euler", None)),
        ("Euler", "SGM Uniform", ("euler", "sgm_uniform")),
        ("Euler a", "automatic", ("euler_a", None)),
        ("k_euler_ancestral", None, ("euler_a", None)),
        ("DPM++ 2M", None, ("dpmpp_2m", "karras")),
        ("DPM++ 2M Karras", "Karras", ("dpmpp_2m", "karras")),
        ("k_dpmpp_2m_ka", "", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "Uniform", ("dpmpp_2m", None)),
        ("DPM++ 2M SDE", "Automatic", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ SDE Karras", None, ("dpmpp_sde", "karras")),
        ("dpmpp_sde", "beta", ("dpmpp_sde", "beta")),
        ("dpm_2_ancestral", "normal", ("dpm2_a", "normal")),
        ("LMS Karras", "Automatic", ("lms", "karras")),
        ("LCM", "Normal", ("lcm", None)),
        ("uni_pc", "simple", ("unipc", None)),
        ("dpmpp_2m_karras", None, ("dpmpp_2m", "karras")),
        ("deis", None, ("deis", None)),
    ],
)
def test_samplers(sampler: str | None, schedule: str | None, names: tuple[str | None, str | None]) -> None:
    assert find_scheduler(sampler, schedule, TAKING) == names


def test_samplers_of_flow_models() -> None:
    flow = PLAIN.model_copy(update={"scheduler_sigmas": TAKING.scheduler_sigmas})
    assert find_scheduler("Euler", "Simple", flow) == (Scheduler.FLOW_EULER, None)
    assert find_scheduler("euler", "beta", flow) == (Scheduler.FLOW_EULER, Sigmas.BETA)


@pytest.mark.parametrize(
    ("sampler", "schedule", "message"),
    [
        ("DPM adaptive", None, "should be one of: DPM"),
        ("Restart", "Karras", "should be one of: DPM"),
        ("Euler", "Align Your Steps", "should be one of: Automatic, Uniform, Karras"),
        ("Euler Karras", "Beta", "names another schedule"),
    ],
)
def test_sampler_without_an_equivalent_is_refused(sampler: str, schedule: str | None, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        find_scheduler(sampler, schedule, TAKING)


@pytest.mark.parametrize("scheduler", WEB_UI_SAMPLERS)
@pytest.mark.parametrize("sigmas", [None, *WEB_UI_SCHEDULES])
def test_names_in_results_are_read_back(scheduler: Scheduler, sigmas: Sigmas | None) -> None:
    card = TAKING.model_copy(update={"scheduler_sigmas": dict.fromkeys(Scheduler, tuple(Sigmas))})
    assert find_scheduler(*web_ui_names(scheduler, sigmas), card) == (scheduler, sigmas)


def test_names_of_comfyui_are_read() -> None:
    for scheduler, name in COMFYUI_SAMPLERS.items():
        assert find_scheduler(name, "simple", TAKING)[0] is scheduler
