"""The web UI's prompt language and names of samplers."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from img2img.app.compat.a1111_prompt import WebUIPrompt, parse_prompt
from img2img.app.compat.a1111_samplers import SAMPLERS, find_scheduler
from img2img.domain.infotext import WEIGHTED, infotext
from img2img.domain.parameters import Scheduler
from img2img.errors import ParameterError
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
    assert parse_prompt("prompt", prompt) == WebUIPrompt(text)


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
    ],
)
def test_prompt_with_weights(prompt: str, text: str) -> None:
    assert parse_prompt("prompt", prompt) == WebUIPrompt(text, is_weighted=True)


def test_lora_tags() -> None:
    parsed = parse_prompt("prompt", "<lora:ink:0.8> a house <lora:line><lora:x:-1:-1>")
    assert parsed == WebUIPrompt("a house", loras=(("ink", 0.8), ("line", 1.0), ("x", -1.0)))


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("[cat:dog:0.5]", "prompt editing"),
        ("a [dog:0.5]", "prompt editing"),
        ("[cat|dog]", "prompt editing"),
        ("a house BREAK a tree", "BREAK"),
        ("a house AND a tree", "AND"),
        ("<hypernet:x:1>", "<hypernet:...>"),
        ("<lyco:x:1>", "<lyco:...>"),
        ("<lora:x:high>", "LoRA tag"),
        ("<lora:x:1:0.5>", "LoRA tag"),
        (r"\(a\) (b:2)", "as characters"),
        ("(" * 40, "nested"),
    ],
)
def test_syntax_without_an_equivalent_is_refused_by_name(prompt: str, name: str) -> None:
    with pytest.raises(ParameterError, match=name) as refused:
        parse_prompt("negative_prompt", prompt)
    assert refused.value.field == "negative_prompt"


@given(st.text(alphabet="a1.:()[]\\<>| ", max_size=40))
def test_all_brackets_of_a_weighted_prompt_belong_to_weights(prompt: str) -> None:
    with suppress(ParameterError):
        parsed = parse_prompt("prompt", prompt)
        if parsed.is_weighted:
            assert not set("()") & set(WEIGHTED.sub(lambda match: "" if match[1] else match[0], parsed.text))


@given(st.text(alphabet="ab()[]\\: 1.", max_size=30))
def test_text_of_results_is_read_back(prompt: str) -> None:
    text = infotext(make_spec(prompt=prompt), 1).rpartition("\n")[0]
    assert parse_prompt("prompt", text) == WebUIPrompt(prompt)


@pytest.mark.parametrize(
    ("sampler", "schedule", "scheduler"),
    [
        (None, "Karras", None),
        ("", None, None),
        ("Euler", None, Scheduler.EULER),
        ("Euler", "Uniform", Scheduler.EULER),
        ("Euler a", "automatic", Scheduler.EULER_A),
        ("k_euler_ancestral", None, Scheduler.EULER_A),
        ("DPM++ 2M", None, Scheduler.DPMPP_2M_KARRAS),
        ("DPM++ 2M Karras", "Karras", Scheduler.DPMPP_2M_KARRAS),
        ("k_dpmpp_2m_ka", "", Scheduler.DPMPP_2M_KARRAS),
        ("DPM++ 2M", "Uniform", Scheduler.DPMPP_2M),
        ("DPM++ 2M SDE", "Automatic", Scheduler.DPMPP_2M_SDE),
        ("deis", None, Scheduler.DEIS),
    ],
)
def test_samplers(sampler: str | None, schedule: str | None, scheduler: Scheduler | None) -> None:
    assert find_scheduler(sampler, schedule) is scheduler


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [("DPM++ SDE Karras", None), ("Euler", "Karras"), ("DPM++ 2M SDE", "Karras"), ("DPM++ 2M", "Beta")],
)
def test_sampler_without_an_equivalent_is_refused(sampler: str, schedule: str | None) -> None:
    with pytest.raises(ParameterError, match=r"DPM\+\+ 2M \(Karras\)"):
        find_scheduler(sampler, schedule)


@pytest.mark.parametrize("names", SAMPLERS)
def test_listed_samplers_are_accepted(names: tuple[str, str]) -> None:
    assert find_scheduler(*names) is SAMPLERS[names]
