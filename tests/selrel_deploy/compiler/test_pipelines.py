"""The table of passes: forms by name, cached where they are, made anew where they hold weights of their own."""

from __future__ import annotations

import pytest
import torch

import selrel_zennit as sr
from networks import few_layers
from selrel_deploy import compile_explanation
from selrel_deploy.compiler.pipelines import FORMS, PASSES, of_all_forms, of_form


@pytest.fixture(scope="module")
def graph():
    model = few_layers()
    return compile_explanation(sr.build_method("dtd", model), torch.zeros(1, *model.spec.shape))


@pytest.mark.parametrize("name", [name for name in FORMS if name != "inductor"])
def test_every_form_computes_the_same(graph, name):
    clip = torch.randn(graph.clip_shape, generator=torch.Generator().manual_seed(0)) * 50
    target = torch.tensor([1])
    expected = graph.form("plain")(clip, target)
    for found, wanted in zip(graph.form(name)(clip.clone(), target), expected, strict=True):
        most = float(wanted.double().abs().max())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * most + 1e-12)


def test_forms_are_kept_but_for_the_one_with_weights_of_its_own(graph):
    assert graph.form("eager") is graph.form("eager")
    assert graph.module is graph.form("plain")
    assert graph.form("onnx") is not graph.form("onnx")
    with pytest.raises(sr.InputError, match="plain, eager, compiled, inductor, onnx"):
        graph.form("tensorrt")


def test_every_pass_belongs_to_a_form_and_says_what_it_does(graph):
    known = {name for one in PASSES for name in one.forms or ()}
    assert known == set(FORMS)
    assert all(one.does and one.does[0].islower() for one in PASSES)
    assert all(form.on is None or form.on in FORMS for form in FORMS.values())
    reported = [report.name for report in graph.passes]
    assert reported == ["trace", "lower", *(one.name for one in of_all_forms()), "plain", "compiled"]
    assert {one.name for one in of_form("eager")} == {"kernels", "blocks", "in place"}
