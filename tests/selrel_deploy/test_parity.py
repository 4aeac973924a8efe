"""The certificate against planted faults: what is right passes, what is wrong does not, whatever its cosine."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
import torch

import selrel_zennit as sr
from selrel_deploy import compile_explanation, export, open_runner
from selrel_deploy.parity import _cosine, _ranks, certify, certify_golden, motion_margin
from selrel_zennit.selection import PRESETS

from .conftest import clip_with_ties, varied

SHAPE = (8, 12, 12)
SELECTION = sr.MotionSelection(n_sigma=2.0)
CLIPS = np.random.default_rng(0).normal(size=(3, 3, *SHAPE)).astype(np.float32)


def pretend(clip, target, *, classes=4, contrast=0.3, change=lambda relevance: relevance, wrong=False):
    """Explain by a formula: energy of the clip, a change over time, and a pattern of the class, ``contrast`` strong."""
    logits = clip.mean((1, 2, 3, 4))[:, None] * 0 + np.cos(np.arange(classes) + clip[0, 0, 0, 0, 0])
    explained = np.array([logits[0].argmax() if target == -1 else target])
    shown = (int(explained[0]) + 1) % classes if wrong else int(explained[0])
    pattern = np.random.default_rng(shown).random(SHAPE)
    motion = np.abs(np.diff(clip[0].sum(0), axis=0, prepend=0))
    relevance = change((clip[0] ** 2).sum(0) + motion + contrast * pattern).astype(np.float32)[None]
    motion, mask = SELECTION(relevance)
    return sr.Explanation(logits.astype(np.float32), explained, relevance, motion, mask)


def noise(share):
    def change(relevance):
        drawn = np.random.default_rng(9).normal(size=relevance.shape)
        return relevance + drawn * share * np.linalg.norm(relevance) / np.linalg.norm(drawn)

    return change


@pytest.mark.parametrize(
    ("change", "grade"),
    [
        (lambda relevance: relevance, "exact"),
        (noise(3e-4), "exact"),
        (noise(3e-3), "faithful"),
        (lambda relevance: relevance * 1.035, "approximate"),
        (noise(0.03), "approximate"),
        (noise(0.2), "failed"),
        (lambda relevance: relevance * 0, "failed"),
        (lambda relevance: relevance[::-1].copy(), "failed"),
    ],
)
def test_grades(change, grade):
    certificate = certify(
        lambda clip, target: pretend(clip, target, contrast=2, change=change),
        lambda clip, target: pretend(clip, target, contrast=2),
        CLIPS,
        asdict(SELECTION),
    )
    assert certificate.grade == grade, str(certificate)
    assert not certificate.class_blind
    assert (grade == "failed") == bool(certificate.reasons)
    assert str(certificate).startswith(grade)
    assert json.loads(json.dumps(certificate.to_dict()))["grade"] == grade


def test_a_wrong_class_fails_though_its_cosine_is_high():
    reference = lambda clip, target: pretend(clip, target, contrast=0.3)  # noqa: E731
    certificate = certify(
        lambda clip, target: pretend(clip, target, contrast=0.3, wrong=True), reference, CLIPS, asdict(SELECTION)
    )
    assert min(row.cosine for row in certificate.comparisons if row.output == "relevance") > 0.999
    assert certificate.grade == "failed"
    assert "wrong class" in certificate.reasons[0]


def test_class_blind_maps_are_said_to_be_and_judged_by_motion():
    reference = lambda clip, target: pretend(clip, target, contrast=1e-4)  # noqa: E731
    certificate = certify(reference, reference, CLIPS, asdict(SELECTION))
    assert certificate.class_blind
    assert certificate.grade == "exact"
    assert "class-blind" in str(certificate)

    def ignores_the_target(clip, target):
        return pretend(clip, -1, contrast=1e-4)

    certificate = certify(ignores_the_target, reference, CLIPS, asdict(SELECTION))
    assert certificate.grade == "failed"
    assert "another class is named or explained" in certificate.reasons[0]

    def freezes(clip, target):
        return pretend(np.broadcast_to(clip[:, :, :1], clip.shape), target, contrast=1e-4)

    certificate = certify(freezes, reference, CLIPS, asdict(SELECTION))
    assert any("motion" in reason for reason in certificate.reasons)
    with pytest.raises(sr.InputError, match="at least one clip"):
        certify(reference, reference, CLIPS[:0], asdict(SELECTION))


def test_rank_correlation_is_scipys_with_ties():
    rng = np.random.default_rng(1)
    for _ in range(5):
        a, b = rng.integers(0, 4, 200).astype(float), rng.normal(size=200)
        expected = scipy.stats.spearmanr(a, b).statistic
        ranks = [rank - rank.mean() for rank in (_ranks(a), _ranks(b))]
        assert _cosine(*ranks) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_margins_are_those_of_the_selection(name):
    selection = sr.MotionSelection.preset(name, n_sigma=1.5)
    relevance = np.random.default_rng(2).normal(size=(1, *SHAPE))
    margin, threshold = motion_margin(relevance[0], **asdict(selection))
    assert threshold > 0
    assert np.array_equal(margin > 0, selection.mask(relevance)[0])


def test_onnxruntime_certifies_itself_against_the_golden_cases(tmp_path):
    model = varied(torch.float32)
    graph = compile_explanation(sr.build_method("lrp_epsilon_plus", model), torch.zeros(1, *model.spec.shape))
    clips = torch.cat([clip_with_ties(model.spec, seed) for seed in range(3)])
    path = export(graph, tmp_path / "lrp.onnx", clips=clips)
    with open_runner(path) as run, open_runner(graph, "eager") as eager:
        golden = certify_golden(run, run.artifact)
        live = certify(run, eager, clips.numpy(), asdict(graph.selection))
        assert golden.grade in ("exact", "faithful"), str(golden)
        assert golden.grade == live.grade
        assert [row.frozen for row in golden.yardsticks] == pytest.approx([row.frozen for row in live.yardsticks])
        other = certify(eager, eager, clips.numpy()[::-1].copy(), asdict(graph.selection))
        assert other.grade == "exact"
        assert max(row.norm_error for row in other.comparisons) == 0
