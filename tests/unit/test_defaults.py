"""How a request's defaults are made explicit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from img2img.app.submission.defaults import nearest_side, resolve_seed, resolve_size
from img2img.app.submission.geometry import nearest_bucket
from img2img.app.submission.submit import resolve_model
from img2img.domain.model_card import ModelCard
from img2img.domain.parameters import MAX_SEED
from img2img.errors import ParameterError, Unavailable
from tests.support.model_cards import CARD, DDIM_ONLY


class Cards(dict[str, ModelCard]):
    """Model cards by name."""

    def find(self, name: str) -> ModelCard | None:
        return self.get(name)

    def known_names(self) -> list[str]:
        return sorted(self)


KNOWN = Cards({CARD.name: CARD, DDIM_ONLY.name: DDIM_ONLY})
pixels = st.integers(1, 20_000)


@pytest.mark.parametrize(("name", "card"), [(None, CARD), ("demo", CARD), ("ddim-only", DDIM_ONLY)])
def test_a_model_is_found_by_name(name: str | None, card: object) -> None:
    assert resolve_model(name, "demo", KNOWN) is card


def test_an_unknown_model_is_refused_with_the_list() -> None:
    with pytest.raises(ParameterError, match="ddim-only, demo"):
        resolve_model("sdxl", "demo", KNOWN)


@pytest.mark.parametrize("name", [None, "demo"])
def test_the_default_model_is_unavailable_until_a_worker_has_offered_it(name: str | None) -> None:
    with pytest.raises(Unavailable, match="demo"):
        resolve_model(name, "demo", Cards())


@pytest.mark.parametrize(
    ("width", "height", "picture", "size"),
    [
        (None, None, (100, 100), (128, 128)),
        (None, None, (4000, 3000), (144, 112)),
        (None, None, (1, 1000), (96, 168)),
        (64, 256, (100, 100), (64, 256)),
        (128, None, (200, 100), (128, 64)),
        (None, 128, (200, 100), (256, 128)),
        (128, None, (300, 200), (128, 88)),  # 85.3 is nearer to 88 than to 80
    ],
)
def test_sizes(width: int | None, height: int | None, picture: tuple[int, int], size: tuple[int, int]) -> None:
    assert resolve_size(width, height, picture, CARD) == size


@pytest.mark.parametrize(
    ("width", "height", "field", "message"),
    [
        (100, 64, "width", "the nearest is 96"),
        (64, 101, "height", "the nearest is 104"),
        (8, None, "width", "the nearest is 64"),
        (None, 1_000_000, "height", "the nearest is 256"),
        (64, None, "height", "it would be 16,"),
    ],
)
def test_sizes_that_cannot_be_honoured(width: int | None, height: int | None, field: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as refused:
        resolve_size(width, height, (400, 100), CARD)
    assert refused.value.field == field


@given(pixels, pixels)
def test_without_a_size_a_bucket_is_taken_and_none_is_nearer(width: int, height: int) -> None:
    size = resolve_size(None, None, (width, height), CARD)
    assert size in CARD.sizes
    assert size == nearest_bucket(CARD.sizes, 7 * width, 7 * height)


@given(pixels)
def test_the_nearest_side_is_one_that_is_taken(side: int) -> None:
    nearest = nearest_side(side, CARD)
    assert resolve_size(nearest, nearest, (1, 1), CARD) == (nearest, nearest)
    assert all(abs(side - nearest) <= abs(side - other) for other in range(64, 257, 8))


@given(pixels, pixels, st.sampled_from(range(64, 257, 8)))
def test_the_other_side_follows_the_shape_or_is_refused(width: int, height: int, given_side: int) -> None:
    exact = given_side * height / width
    if 64 - 8 < exact < 256 + 8:
        assert resolve_size(given_side, None, (width, height), CARD) == (given_side, nearest_side(exact, CARD))
    else:
        with pytest.raises(ParameterError, match="give both sides"):
            resolve_size(given_side, None, (width, height), CARD)


def test_seeds_are_drawn_or_kept() -> None:
    assert resolve_seed(0, 8) == 0
    assert resolve_seed(MAX_SEED, 1) == MAX_SEED
    drawn = {resolve_seed(None, 1) for _ in range(50)}
    assert len(drawn) > 45
    assert all(0 <= seed < 2**32 for seed in drawn)


def test_the_seeds_of_all_images_stay_in_range() -> None:
    with pytest.raises(ParameterError, match=f"at most {MAX_SEED - 1}"):
        resolve_seed(MAX_SEED, 2)
