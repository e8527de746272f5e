"""Resolution of the model, the size and the seed of a request, and defaults of settings."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from img2img.app.settings import ApiSettings
from img2img.app.submission.defaults import nearest_side, resolve_seed, resolve_size
from img2img.app.submission.submit import resolve_model
from img2img.domain.geometry import kept_share, nearest_bucket
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


CARDS = Cards({CARD.name: CARD, DDIM_ONLY.name: DDIM_ONLY})
pixels = st.integers(1, 20_000)


@pytest.mark.parametrize(("name", "card"), [(None, CARD), ("demo", CARD), ("ddim-only", DDIM_ONLY)])
def test_resolve_model_returns_the_named_or_default_model(name: str | None, card: object) -> None:
    assert resolve_model(name, "demo", CARDS) is card


def test_unknown_model_error_lists_the_models() -> None:
    with pytest.raises(ParameterError, match="ddim-only, demo"):
        resolve_model("sdxl", "demo", CARDS)


@pytest.mark.parametrize("name", [None, "demo"])
def test_default_model_is_unavailable_until_a_worker_serves_it(name: str | None) -> None:
    with pytest.raises(Unavailable, match="demo"):
        resolve_model(name, "demo", Cards())


@pytest.mark.parametrize(
    ("width", "height", "image_size", "size"),
    [
        (None, None, (100, 100), (128, 128)),
        (None, None, (4000, 3000), (144, 112)),
        (None, None, (1600, 900), (168, 96)),
        (None, None, (2100, 900), (192, 80)),  # a film: all of it, at about as many pixels
        (None, None, (900, 2100), (80, 192)),
        (None, None, (2000, 250), (256, 64)),  # as much of a panorama as the model can make
        (None, None, (1, 1000), (64, 256)),
        (64, 256, (100, 100), (64, 256)),
        (128, None, (200, 100), (128, 64)),
        (None, 128, (200, 100), (256, 128)),
        (128, None, (300, 200), (128, 88)),  # 85.3 is nearer to 88 than to 80
    ],
)
def test_resolve_size(
    width: int | None, height: int | None, image_size: tuple[int, int], size: tuple[int, int]
) -> None:
    assert resolve_size(width, height, image_size, CARD) == size


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
def test_unsupported_sizes_are_rejected(width: int | None, height: int | None, field: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as raised:
        resolve_size(width, height, (400, 100), CARD)
    assert raised.value.field == field


@given(pixels, pixels)
def test_default_size_is_the_nearest_bucket_unless_that_cuts_off_much(width: int, height: int) -> None:
    size = resolve_size(None, None, (width, height), CARD)
    bucket = nearest_bucket(CARD.sizes, 7 * width, 7 * height)
    if kept_share((width, height), bucket) >= 0.8:
        assert size == bucket
        return
    assert all(side == nearest_side(side, CARD) for side in size)
    kept = kept_share((width, height), size)
    assert kept >= 0.8 or set(size) == {64, 256}
    assert kept > kept_share((width, height), bucket)


@given(pixels)
def test_nearest_side_is_supported(side: int) -> None:
    nearest = nearest_side(side, CARD)
    assert resolve_size(nearest, nearest, (1, 1), CARD) == (nearest, nearest)
    assert all(abs(side - nearest) <= abs(side - other) for other in range(64, 257, 8))


@given(pixels, pixels, st.sampled_from(range(64, 257, 8)))
def test_other_side_keeps_the_aspect_ratio_or_is_rejected(width: int, height: int, given_side: int) -> None:
    exact = given_side * height / width
    if 64 - 8 < exact < 256 + 8:
        assert resolve_size(given_side, None, (width, height), CARD) == (given_side, nearest_side(exact, CARD))
    else:
        with pytest.raises(ParameterError, match="give both sides"):
            resolve_size(given_side, None, (width, height), CARD)


def test_resolve_seed_keeps_or_draws_a_seed() -> None:
    assert resolve_seed(0, 8) == 0
    assert resolve_seed(MAX_SEED, 1) == MAX_SEED
    seeds = {resolve_seed(None, 1) for _ in range(50)}
    assert len(seeds) > 45
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_seed_of_the_last_image_must_be_in_range() -> None:
    with pytest.raises(ParameterError, match=f"at most {MAX_SEED - 1}"):
        resolve_seed(MAX_SEED, 2)


@pytest.mark.parametrize(
    ("configured", "limit"),
    [
        ({"host": "127.0.0.1"}, None),
        ({"host": "127.0.0.1", "keys": "required"}, 10_000),
        ({"host": "192.0.2.1"}, 10_000),
        ({"host": "192.0.2.1", "insecure": True}, None),
        ({"host": "192.0.2.1", "max_queued_per_key": 7}, 7),
        ({"host": "127.0.0.1", "max_queued_per_key": 7}, 7),
    ],
)
def test_queued_jobs_are_limited_where_keys_are_required(configured: dict[str, Any], limit: int | None) -> None:
    assert ApiSettings(_env_file=None, **configured).resolved_max_queued_per_key == limit
