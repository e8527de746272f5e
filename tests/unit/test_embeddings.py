"""Names of embeddings in prompts."""

import pytest

from img2img.domain.embeddings import named_embeddings, replace_embeddings

TOKENS = {"EasyNegative": "T1", "bad-hands-5": "T2 T3", "style": "T4", "style-2": "T5", "v1.3": "T6"}


@pytest.mark.parametrize(
    ("prompt", "replaced"),
    [
        ("easynegative", "T1"),
        ("a house, EASYNEGATIVE, blurry", "a house, T1, blurry"),
        ("(EasyNegative:1.2), bad-hands-5.", "(T1:1.2), T2 T3."),
        ("<EasyNegative> and <style>", "T1 and T4"),
        ("embedding:easynegative, embedding:style-2.", "T1, T5."),
        ("(embedding:style:0.8) embedding:bad-hands-5.safetensors", "(T4:0.8) T2 T3"),
        ("Embedding:Style.pt", "T4"),
        ("style-2 style", "T5 T4"),
        ("in the v1.3 style", "in the T6 T4"),
        # Parts of other words.
        ("a stylesheet, hairstyle, style-3, my_style, styles", "a stylesheet, hairstyle, style-3, my_style, styles"),
        ("uneasynegatively", "uneasynegatively"),
        ("v1.3.1 style.css", "v1.3.1 style.css"),
        # Other names stay as they are.
        ("<other> embedding:other <lora:ink:1>", "<other> embedding:other <lora:ink:1>"),
        ("", ""),
    ],
)
def test_replace_embeddings_replaces_whole_names(prompt: str, replaced: str) -> None:
    assert replace_embeddings(prompt, TOKENS) == replaced


def test_replace_embeddings_without_embeddings_changes_nothing() -> None:
    prompt = "a <b> house, embedding:style"
    assert replace_embeddings(prompt, {}) == prompt


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("a house", []),
        ("1 < 2 > 0, <3, a <- b, <!>, ->, <lora:ink:1>", []),
        ("<Style> embedding:Other.pt, (embedding:bad-hands-5:1.2)", ["style", "other", "bad-hands-5"]),
        ("an embedding: nothing, anembedding:word", []),
    ],
)
def test_named_embeddings_yields_explicit_names_only(prompt: str, names: list[str]) -> None:
    assert [name for _, name in named_embeddings(prompt)] == names
