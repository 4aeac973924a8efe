"""Regions: p-values and Benjamini and Hochberg's procedure by hand, on moving maps and on still ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import selrel_zennit as sr
from networks import small_c3d
from selrel_zennit.calibration import Stills
from selrel_zennit.selection import RegionNull, RegionSelection
from selrel_zennit.selection.regions import cell_changes
from selrel_zennit.selection.relevance_source import RelevanceSource

SOURCE = RelevanceSource("m", "w", "gradient", {}, {"frames": 5})
CELL = (2, 4, 4)


def maps(count, seed=0, shape=(5, 10, 12)):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, *shape)))


def changes_by_hand(relevance):
    """Mean |G| ÷ Σ|R| of each cell, in float64: [slabs,rows,columns]."""
    padded = np.pad(relevance.numpy() / np.abs(relevance.numpy()).sum(), 1, mode="edge")
    change = padded[2:] - padded[:-2]
    rows = change[:, :-2] + 2 * change[:, 1:-1] + change[:, 2:]
    gradient = np.abs(rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:])
    starts = [range(0, length, size) for length, size in zip(gradient.shape, CELL, strict=True)]
    return np.array(
        [[[gradient[t : t + 2, y : y + 4, x : x + 4].mean() for x in starts[2]] for y in starts[1]] for t in starts[0]]
    )


@pytest.fixture(scope="module")
def still():
    return np.stack([changes_by_hand(one) for one in maps(30)])


@pytest.fixture(scope="module")
def null(still):
    return RegionNull.of(still.transpose(1, 0, 2, 3).reshape(3, -1), CELL, levels=1000)


def test_changes_of_cells_are_means_over_them(still):
    np.testing.assert_allclose(cell_changes(maps(30), CELL).numpy(), still, rtol=1e-12)
    by_channel = torch.stack([maps(30) / 4, maps(30) / 2, maps(30) / 4], 1)
    np.testing.assert_allclose(cell_changes(by_channel, CELL).numpy(), still, rtol=1e-12)
    assert cell_changes(torch.zeros(1, 5, 8, 8)).abs().sum() == 0


def test_p_values_and_the_procedure_are_those_by_hand(still, null):
    relevance = maps(4, seed=1)
    relevance[:2, 2:, 4:8, 4:8] *= 9  # something moves there in the first two clips
    selection = RegionSelection(0.2, null, SOURCE)
    p_values, mask = selection.p_values(relevance).numpy(), selection.mask(relevance).numpy()
    assert mask[:2].any(axis=(1, 2, 3)).all()
    for clip, found in enumerate(p_values):
        changes = changes_by_hand(relevance[clip])
        reached = (still >= changes[None]).sum(axis=(0,)) * 0
        for slab in range(3):
            pool = still[:, slab].ravel()
            reached[slab] = (pool[None, None] >= changes[slab][..., None]).sum(-1)
        expected = (1 + reached) / (still[:, 0].size + 1)
        expected = np.where(expected > null.levels[-1], 1, expected)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        ordered = np.sort(expected.ravel())
        passing = ordered <= 0.2 * np.arange(1, ordered.size + 1) / ordered.size
        limit = ordered[passing].max() if passing.any() else 0
        kept = (expected <= limit).repeat(2, 0).repeat(4, 1).repeat(4, 2)[:5, :10, :12]
        np.testing.assert_array_equal(mask[clip], kept)


def test_numpy_torch_and_channels_agree(null):
    selection, relevance = RegionSelection(0.3, null, SOURCE), maps(3, seed=2)
    relevance[:, 3:, :4, :4] *= 9
    motion, mask = selection(relevance)
    assert mask.any()
    np.testing.assert_array_equal(selection.mask(relevance.numpy()), mask.numpy())
    torch.testing.assert_close(motion, torch.where(mask, relevance, 0))
    wide, same = selection(torch.stack([relevance, relevance], 1))
    assert wide.shape == (3, 2, 5, 10, 12)
    assert torch.equal(same, mask)


def test_still_clips_raise_the_alarm_at_the_rate_asked_for(null):
    """Independent noise maps: of those like the null, a share q keeps anything, within three standard errors."""
    mask = RegionSelection(0.1, null, SOURCE).mask(maps(600, seed=3))
    assert mask.flatten(1).any(1).double().mean() == pytest.approx(0.1, abs=3 * np.sqrt(0.09 / 600) + 0.02)


def test_what_does_not_fit_is_refused(null):
    for q in (0, 0.5, True, "0.1"):
        with pytest.raises(sr.InputError, match="rate of false discoveries"):
            RegionSelection(q, null, SOURCE)
    with pytest.raises(sr.InputError, match="3 time slabs, the map has 4"):
        RegionSelection(0.1, null, SOURCE).mask(torch.ones(1, 8, 10, 12))
    with pytest.raises(sr.InputError, match="float"):
        RegionSelection(0.1, null, SOURCE).mask(torch.ones(1, 5, 10, 12, dtype=torch.int64))
    with pytest.raises(sr.InputError, match="must rise"):
        RegionNull(CELL, (0.2, 0.1), ((1.0, 1.0),), 9)
    with pytest.raises(sr.InputError, match="limits"):
        RegionNull(CELL, (0.1, 0.2), ((1.0,),), 9)


def test_a_calibration_holds_regions_through_its_file():
    model = small_c3d()
    frames = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3)).astype(np.uint8)
    stills = Stills(list(frames[:16]), list(frames[16:]), "noise", None, 0)
    calibration = sr.calibrate(model, "gradient", stills, alphas=(0.05,))
    assert calibration.classes == "drawn"
    assert sr.Calibration.from_json(calibration.to_json()) == calibration
    selection = calibration.region_selection(0.1)
    clips = torch.cat([model.spec.clip(np.stack([frame] * 16)) for frame in frames[16:]])
    targets = np.random.default_rng((0, 1)).integers(model.num_classes, size=24).tolist()[16:]
    kept = sr.explain(model, clips, "gradient", targets, selection=selection).mask.any(axis=(1, 2, 3))
    assert calibration.false_alarms == kept.mean()
    with pytest.raises(sr.InputError, match="another method"):
        sr.explain(model, clips, "gradient_x_input", selection=selection)

    earlier = json.loads(calibration.to_json())
    for name in ("classes", "regions", "false_alarms"):
        del earlier[name]
    old = sr.Calibration.from_json(json.dumps({**earlier, "schema": 1}))
    assert (old.classes, old.regions) == ("top", None)
    with pytest.raises(sr.InputError, match="knows no regions"):
        old.region_selection()
