"""MotionSelection: presets, checks, and maps that other libraries make. The arithmetic is tested in selrel_kernels."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

import selrel_zennit as sr
from networks import small_c3d
from selrel_kernels import select_motion
from selrel_zennit.selection.selections import PRESETS


def test_presets_are_the_table():
    table = {
        "default": ("absolute", "signed", "replicate", "none"),
        "paper": ("rising", "signed", "zero", "none"),
        "author-2020": ("falling", "signed", "zero", "author-2020"),
        "author-2021": ("absolute", "absolute", "zero", "none"),
    }
    assert list(PRESETS) == list(table)
    for name, (sign, sigma, border, normalise) in table.items():
        expected = sr.MotionSelection(n_sigma=2.5, sign=sign, sigma=sigma, border=border, normalise=normalise)
        assert sr.MotionSelection.preset(name, n_sigma=2.5) == expected
    assert sr.MotionSelection.preset("default") == sr.MotionSelection()


@pytest.mark.parametrize("preset", list(PRESETS))
def test_it_is_select_motion(preset):
    relevance = torch.randn(2, 3, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    selection = sr.MotionSelection.preset(preset, n_sigma=1)
    motion, mask = selection(relevance)
    expected_motion, expected_mask = select_motion(relevance, **asdict(selection))
    assert torch.equal(mask, expected_mask)
    assert torch.equal(motion, expected_motion)
    assert torch.equal(selection.mask(relevance), mask)
    assert 0 < mask.sum() < mask.numel()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_sigma", -1, "n_sigma must be"),
        ("n_sigma", float("nan"), "n_sigma must be"),
        ("n_sigma", "4", "n_sigma must be a number"),
        ("sign", "up", "'rising'"),
        ("sigma", "mad", "'signed'"),
        ("border", "mirror", "'replicate'"),
        ("normalise", "max", "'none'"),
    ],
)
def test_it_checks_itself(field, value, message):
    with pytest.raises(sr.InputError, match=message):
        sr.MotionSelection(**{field: value})


def test_an_unknown_preset_is_named():
    with pytest.raises(sr.InputError, match="did you mean 'author-2020'"):
        sr.MotionSelection.preset("author2020")


def test_captum_goes_straight_in(clip):
    from captum.attr import IntegratedGradients, LayerGradCam

    model = small_c3d()
    relevance = IntegratedGradients(model).attribute(clip, target=1, n_steps=4).float()
    motion, mask = sr.MotionSelection(n_sigma=2)(relevance)
    assert motion.shape == clip.shape
    assert torch.equal(motion, torch.where(mask[:, None], relevance, 0))
    coarse = LayerGradCam(model, model.relu4b).attribute(clip, target=1)
    motion, mask = sr.MotionSelection(n_sigma=1)(coarse)
    assert motion.shape == coarse.shape
    assert mask.shape == (1, *coarse.shape[2:])


def test_pytorch_grad_cam_goes_straight_in(clip):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = small_c3d().requires_grad_(True)
    with GradCAM(model=model, target_layers=[model.relu4b]) as peer:
        relevance = peer(clip, targets=[ClassifierOutputTarget(1)])
    motion, mask = sr.MotionSelection(n_sigma=1)(relevance)
    assert isinstance(motion, np.ndarray)
    assert motion.shape == mask.shape == relevance.shape == (1, 16, 16, 16)
    assert np.array_equal(motion, np.where(mask, relevance, 0))
