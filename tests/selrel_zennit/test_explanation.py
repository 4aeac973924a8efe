"""Explanation: what it refuses, and its shares."""

import numpy as np
import pytest

import selrel_zennit as sr


def parts(batch=2):
    rng = np.random.default_rng(1)
    relevance = rng.normal(size=(batch, 3, 4, 5)).astype(np.float32)
    relevance[:, 0] = 0
    mask = rng.random(relevance.shape) < 0.3
    return {
        "logits": rng.normal(size=(batch, 7)).astype(np.float32),
        "target": np.arange(batch),
        "relevance": relevance,
        "motion_relevance": np.where(mask, relevance, 0),
        "mask": mask,
    }


def test_shares_are_those_of_the_formula():
    explanation = sr.Explanation(**parts())
    share = explanation.motion_share()
    for b in range(2):
        kept = relevant = mass = kept_mass = 0
        for value, chosen in zip(explanation.relevance[b].ravel(), explanation.mask[b].ravel(), strict=True):
            relevant += value != 0
            kept += value != 0 and chosen
            mass += abs(float(value))
            kept_mass += abs(float(value)) * chosen
        assert share.area[b] == pytest.approx(kept / relevant)
        assert share.mass[b] == pytest.approx(kept_mass / mass)
    assert np.array_equal(explanation.static_relevance + explanation.motion_relevance, explanation.relevance)
    assert np.allclose(explanation.probabilities().sum(1), 1)


def test_a_map_of_zeros_has_no_share():
    zero = parts(1) | {name: np.zeros((1, 3, 4, 5), np.float32) for name in ("relevance", "motion_relevance")}
    assert np.isnan(sr.Explanation(**zero).motion_share()).all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("relevance", lambda value: value[:, None], r"relevance must be \[B,T,H,W\], got \(2, 1, 3, 4, 5\)"),
        ("logits", lambda value: value[0], r"logits must be \[B,K\]"),
        ("logits", lambda value: value[:1], "logits has a batch of 1"),
        ("target", lambda value: value + 6, "target must lie in 0…6"),
        ("target", lambda value: value.astype(float), "target must be of kind integer"),
        ("mask", lambda value: value.astype(np.uint8), "mask must be of kind bool"),
        ("mask", lambda value: ~value, "motion_relevance must be relevance where mask is set"),
        ("mask", lambda value: value[:, :2], "mask must have relevance's shape"),
        ("relevance", lambda value: value * np.nan, "relevance holds NaN"),
        ("logits", lambda value: value.tolist(), "logits must be a NumPy array"),
    ],
)
def test_what_does_not_fit_is_refused(name, change, message):
    wrong = parts()
    wrong[name] = change(wrong[name])
    with pytest.raises(ValueError, match=message):
        sr.Explanation(**wrong)


def test_it_is_frozen():
    explanation = sr.Explanation(**parts())
    with pytest.raises(AttributeError):
        explanation.mask = None
    assert len(explanation) == 2
