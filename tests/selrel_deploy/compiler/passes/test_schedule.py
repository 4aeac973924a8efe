"""The order of operations: large arrays are let go early, and every value stays what it was."""

import pytest
import torch
from torch.nn import functional as F

import selrel_zennit as sr
from selrel_deploy import compile_explanation
from selrel_deploy.compiler.passes.schedule import shorten_lives
from selrel_deploy.compiler.rewriting import aten

from ...conftest import clip_with_ties

WEIGHT = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def order(graph, *targets):
    return [node.target for node in graph.graph.nodes if node.target in targets]


def most_alive(graph):
    """Return the largest number of elements alive at once, constants and inputs left out."""
    last = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}
    alive: dict = {}
    most = 0
    for node in graph.graph.nodes:
        if node.op == "call_function":
            alive[node] = node.meta["val"].numel() * node.meta["val"].element_size()
        most = max(most, sum(alive.values()))
        alive = {value: size for value, size in alive.items() if last.get(value) not in (node, None)}
    return most


def test_a_mask_is_made_before_what_it_is_made_of_would_have_to_wait(lowered):
    def function(x):
        first = F.conv2d(x, WEIGHT, padding=1)
        relevance = F.conv2d(F.avg_pool2d(first.relu(), 4), WEIGHT, padding=1).sum() * F.conv2d(x, WEIGHT, padding=1)
        return relevance * (first > 0)

    graph = lowered(function, torch.randn(1, 2, 8, 8))
    before, alive = order(graph, aten.gt.Scalar, aten.convolution.default), most_alive(graph)
    assert before == [*[aten.convolution.default] * 3, aten.gt.Scalar]
    x = torch.randn(1, 2, 8, 8)
    expected = graph(x)
    assert shorten_lives(graph) > 0
    assert order(graph, *before) == [aten.convolution.default, aten.gt.Scalar, *[aten.convolution.default] * 2]
    assert most_alive(graph) < alive
    assert torch.equal(graph(x), expected)


@pytest.mark.parametrize(
    ("last", "went"),
    [
        (lambda first, second: first.abs() * second, True),
        (lambda first, second: torch.cat([first, first.abs()], 1) * second, False),
        (lambda first, second: (first > second) * second, False),
        (lambda first, second: F.conv2d(first, WEIGHT, padding=1) * second, False),
        (lambda first, second: (first > 0) * second + first, False),
    ],
    ids=["moves", "larger", "of two", "a convolution", "needed"],
)
def test_what_would_free_nothing_stays(lowered, last, went):
    def function(x):
        first = F.conv2d(x, WEIGHT, padding=1)
        return last(first, F.conv2d(x.relu(), WEIGHT, padding=1).sum())

    graph = lowered(function, torch.randn(1, 2, 8, 8))
    before = [node.target for node in graph.graph.nodes]
    assert (shorten_lives(graph) > 0) is went
    assert ([node.target for node in graph.graph.nodes] != before) is went


def test_an_explanation_holds_neither_pool_inputs_nor_the_first_convolution():
    model = sr.load_model("demo")
    graph = compile_explanation(sr.build_method("dtd", model), clip_with_ties(model.spec, 1))
    nodes = list(graph.module.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    convolutions = [node for node in nodes if node.target == aten.convolution.default]
    logits = graph.module.graph.output_node().args[0][0]
    # None is read again once relevance is on its way.
    for value in (convolutions[0], *(node for node in nodes if node.target == aten.relu.default and pooled(node))):
        assert max(place[user] for user in value.users) < place[logits], value


def pooled(node):
    return any(user.target == aten.max_pool3d.default for user in node.users)
