"""Max pools going backward, in the form for eager and in that for compilers: relevance goes where torch sends it."""

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from selrel_deploy.compiler.passes.max_pools import FIRST_MAXIMA, by_repeating, max_pool_backward, rectify_after_pools
from selrel_deploy.compiler.passes.simplify import simplify
from selrel_deploy.compiler.rewriting import aten, count_operations, written_out

FORMS = pytest.mark.parametrize("form", [max_pool_backward, by_repeating])


def relevance_of_torch(values, settings, generator):
    """Return relevance of whole numbers for a pool's output, the output, and where autograd sends the relevance."""
    values = values.requires_grad_()
    pool = functional.max_pool3d if values.ndim == 5 else functional.max_pool2d
    pooled = pool(values, *settings[:4], ceil_mode=settings[4])
    relevance = torch.randint(-9, 9, pooled.shape, generator=generator).double()
    (expected,) = torch.autograd.grad(pooled, values, relevance)
    return relevance, pooled.detach(), expected


def ties(*shape, generator):
    """Return values of 0 and 1 alone: nearly every window has several maxima."""
    return torch.randint(0, 2, shape, generator=generator).double()


@FORMS
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padded"),
    [
        ((3, 3, 3), (1, 1, 1), True),
        ((3, 3, 3), (2, 2, 2), True),
        ((2, 3, 1), (1, 2, 2), True),
        ((3, 2, 3), (3, 1, 3), False),
        ((2, 2, 2), (2, 2, 2), False),
        ((1, 2, 2), (1, 2, 2), False),
        ((3, 2, 2), (3, 2, 2), True),
        ((2, 3, 3), (2, 3, 3), True),
        ((2, 2, 2), (3, 3, 3), True),
    ],
)
def test_ties_go_where_torch_sends_them(form, kernel, stride, padded, dilation):
    generator = torch.Generator().manual_seed(0)
    values = ties(2, 3, 7, 8, 9, generator=generator)
    padding = [k // 2 if padded else 0 for k in kernel]
    settings = (kernel, stride, padding, dilation, False)
    relevance, pooled, expected = relevance_of_torch(values, settings, generator)
    found = form(relevance, values.detach(), pooled, kernel, stride, padding, [dilation] * 3)
    assert torch.equal(found, expected)


@FORMS
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_images_and_windows_that_reach_past_the_end(form, ceil_mode):
    generator = torch.Generator().manual_seed(1)
    for shape, kernel, padding in (
        ((2, 3, 7, 9), [2, 2], [0, 0]),
        ((2, 3, 7, 9), [2, 2], [1, 1]),
        ((1, 2, 5, 7, 9), [2, 2, 2], [0, 1, 1]),
    ):
        values = ties(*shape, generator=generator)
        settings = (kernel, kernel, padding, 1, ceil_mode)
        relevance, pooled, expected = relevance_of_torch(values, settings, generator)
        found = form(relevance, values.detach(), pooled, kernel, kernel, padding, [1] * len(kernel))
        assert torch.equal(found, expected)


@FORMS
@pytest.mark.parametrize("spoiled", [0.0, float("nan")], ids=["rounded otherwise", "nan"])
def test_one_winner_also_where_no_value_is_the_maximum(form, spoiled):
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(1, 2, 4, 6, 8, generator=generator)
    pooled = functional.max_pool3d(values, 2)
    relevance = torch.rand(pooled.shape, generator=generator)
    if spoiled:
        values = values * spoiled
    found = form(relevance, values, torch.nextafter(pooled, pooled + 1), [2] * 3, [2] * 3, [0] * 3, [1] * 3)
    torch.testing.assert_close(functional.avg_pool3d(found, 2, divisor_override=1), relevance, rtol=0, atol=0)
    assert int((found != 0).sum()) == relevance.numel()


@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_of_few_bits_with_relevance_of_many(form, dtype):
    generator = torch.Generator().manual_seed(4)
    values = torch.rand(1, 2, 4, 6, 8, generator=generator).to(dtype)
    pooled = functional.max_pool3d(values.float(), 2).to(dtype)
    relevance = torch.rand(pooled.shape, generator=generator)
    settings = ([2] * 3, [2] * 3, [0] * 3, [1] * 3)
    found = form(relevance, values, pooled, *settings)
    assert found.dtype == torch.float32
    assert torch.equal(found, max_pool_backward(relevance, values.float(), pooled.float(), *settings))


def pool_and_back(values, relevance):
    pooled = functional.max_pool3d(values.relu(), (2, 2, 2))
    return FIRST_MAXIMA(relevance, values.relu(), pooled, [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1])


@FORMS
def test_the_one_operation_is_written_out(form):
    generator = torch.Generator().manual_seed(2)
    values, relevance = ties(1, 3, 4, 6, 8, generator=generator).float(), torch.rand(1, 3, 2, 3, 4, generator=generator)
    graph = make_fx(pool_and_back, tracing_mode="fake")(values, relevance)
    made = written_out(graph, FIRST_MAXIMA, form)
    assert torch.equal(made(values, relevance), pool_and_back(values, relevance))
    assert "selrel.max_pool_backward.default" in count_operations(graph)
    assert not [name for name in count_operations(made) if name.startswith("selrel")]
    # What it makes of numbers alone is there once, as a constant.
    assert not [name for name in count_operations(made) if "arange" in name]
    # Rank 8 is the most that TensorRT takes.
    arrays = [node.meta["val"] for node in made.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert max(array.ndim for array in arrays) <= 8


def test_what_runtimes_are_slow_at_is_not_in_the_form_for_them():
    values, relevance = torch.zeros(1, 3, 4, 6, 8), torch.zeros(1, 3, 2, 3, 4)
    graph = written_out(make_fx(pool_and_back, tracing_mode="fake")(values, relevance), FIRST_MAXIMA, by_repeating)
    names = set(count_operations(graph))
    assert "aten.upsample_nearest2d.default" in names
    assert not names & {"aten.where.self", "aten.argmax.default", "aten.permute.default", "aten.cat.default"}


def test_graphs_written_out_share_their_constants():
    root = torch.nn.Module()
    root.register_buffer("weight", torch.ones(3))
    graph = fx.Graph()
    graph.output(graph.call_function(torch.mul, (graph.placeholder("value"), graph.get_attr("weight"))))
    made = written_out(fx.GraphModule(root, graph), FIRST_MAXIMA, by_repeating)
    assert made.weight.data_ptr() == root.weight.data_ptr()


def through(values, back, pool=lambda values: functional.max_pool3d(values, 2)):
    rectified = values.neg().relu()
    pooled = pool(rectified)
    return FIRST_MAXIMA(back(pooled, rectified), rectified, pooled, [2] * 3, [2] * 3, [0] * 3, [1] * 3)


def product(pooled, _):
    return -1 * pooled * (pooled + 1) / 3


@pytest.mark.parametrize(
    ("function", "changed"),
    [
        (lambda values: through(values, product), 1),
        # Relevance that comes to a window without a positive value, too, is another's first.
        (lambda values: through(values, lambda pooled, _: pooled + 1), 0),
        (lambda values: through(values, lambda pooled, _: 2 / (pooled + 1)), 0),
        (lambda values: through(values, lambda pooled, rectified: pooled * rectified.sum()), 0),
        (lambda values: through(values, product, lambda values: functional.max_pool3d(values, 2) * 2), 0),
        (lambda values: functional.max_pool3d(values.relu(), 2), 1),
        (lambda values: values.relu(), 0),
    ],
    ids=["product", "sum", "quotient", "needed", "another pool", "forward", "no pool"],
)
def test_relu_behind_the_pool(lowered, function, changed):
    generator = torch.Generator().manual_seed(5)
    # Whole numbers: ties, windows that are negative throughout, and zeros.
    values = torch.randint(-9, 3, (1, 3, 4, 6, 8), generator=generator).float()
    graph = lowered(function, values)
    simplify(graph)
    before = [node.meta["val"].numel() for node in graph.graph.find_nodes(op="call_function", target=aten.relu.default)]
    assert rectify_after_pools(graph) == changed
    after = [node.meta["val"].numel() for node in graph.graph.find_nodes(op="call_function", target=aten.relu.default)]
    assert after == ([size // 8 for size in before] if changed else before)
    for sign in (1, -1):
        assert torch.equal(graph(sign * values), function(sign * values))
