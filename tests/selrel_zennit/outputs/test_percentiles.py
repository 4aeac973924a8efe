"""Percentiles in pieces are NumPy's of the whole, to the last bit; so are the scales made of them."""

import numpy as np
import pytest

from selrel_zennit.errors import InputError
from selrel_zennit.outputs.painter import NORMS, colour_scale, scale_of_parts
from selrel_zennit.outputs.percentiles import percentiles

WANTED = (0.0, 0.5, 25.0, 50.0, 99.5, 100.0)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1001, 20000])
@pytest.mark.parametrize("kind", ["spread", "ties", "positive", "tiny"])
def test_percentiles_are_numpys(count, kind):
    rng = np.random.default_rng(count)
    values = rng.normal(size=count).astype(np.float32)
    if kind == "ties":
        values = np.round(values)
    elif kind == "positive":
        values = np.abs(values) * np.float32(1e30)
    elif kind == "tiny":
        values = (values * np.float32(1e-40)).astype(np.float32)
    found, total = percentiles(lambda: np.array_split(values, 7), WANTED)
    assert total == count
    assert found == np.percentile(values.astype(np.float64), WANTED).tolist()


def test_of_no_values():
    found, total = percentiles(lambda: [np.zeros(0, np.float32)], (50.0,))
    assert np.isnan(found).all()
    assert total == 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("zeros", [0.0, 0.4, 1.0])
def test_the_scale_of_parts_is_that_of_the_whole(norm, zeros):
    """By the definition, from NumPy: the percentile of non-zero values, zeros counted at the ends of "unaligned"."""
    rng = np.random.default_rng(3)
    maps = rng.normal(0.5, 1, size=(5, 4, 8, 8)).astype(np.float32)
    maps[rng.random(maps.shape) < zeros] = 0
    values = maps[maps != 0].astype(np.float64)
    if not values.size:
        expected = {"symmetric": (-1.0, 1.0), "absolute": (0.0, 1.0), "unaligned": (0.0, 1.0)}[norm]
    elif norm == "unaligned":
        low, high = np.percentile(values, (0.5, 99.5))
        expected = (low, high) if zeros == 0 else (min(low, 0.0), max(high, 0.0))
    else:
        high = np.percentile(np.abs(values), 99.5)
        expected = (-high if norm == "symmetric" else 0.0, high)
    assert scale_of_parts(lambda: maps, norm, 99.5) == expected
    assert colour_scale(maps, norm, 99.5) == expected


def test_another_norm_is_refused():
    with pytest.raises(InputError, match="symmetric"):
        scale_of_parts(list, "loud")
