"""Convolutions as runtimes of ONNX files are faster with them: the same values, and only where it pays."""

import torch
from torch.nn.functional import conv2d, conv3d, conv_transpose3d

from selrel_deploy.compiler.passes.onnx_convolutions import (
    join_wide,
    skip_padding_in_time,
    sum_by_convolution,
    unroll_in_time,
)
from selrel_deploy.compiler.passes.simplify import simplify
from selrel_deploy.compiler.rewriting import aten, count_convolutions

from ...conftest import norm_relative, weights


def test_a_layer_and_its_positive_part_read_their_input_once(lowered):
    kernel, positive, bias = weights(40, 5, 3, 3, 3), weights(40, 5, 3, 3, 3) + 1, weights(40)
    values, third, other = weights(2, 5, 4, 6, 7), kernel + positive, -bias

    def joined(function):
        graph = lowered(function, values)
        simplify(graph)
        before = count_convolutions(graph)
        went = join_wide(graph)
        assert norm_relative(graph(values), function(values)) <= 1e-15
        assert before - count_convolutions(graph) == went
        return went

    assert joined(lambda x: conv3d(x, kernel, bias, padding=1).relu() / conv3d(x, positive, padding=1)) == 1
    assert joined(lambda x: conv3d(x, kernel).relu() / conv3d(x, positive, bias)) == 1
    assert joined(lambda x: conv3d(x, kernel, bias) + conv3d(x, positive, other) * conv3d(x, third)) == 2
    # Other values, another geometry, a weight that stays needed: it is computed apart.
    assert joined(lambda x: conv3d(x, kernel, bias) + conv3d(x.relu(), positive)) == 0
    assert joined(lambda x: conv3d(x, kernel, stride=2).sum() + conv3d(x, positive)) == 0
    assert joined(lambda x: conv_transpose3d(conv3d(x, kernel, bias).relu() / conv3d(x, positive), positive)) == 0
    grouped = weights(5, 1, 3, 3, 3), weights(5, 1, 3, 3, 3) + 1
    assert joined(lambda x: conv3d(x, grouped[0], groups=5) / conv3d(x, grouped[1], groups=5)) == 0


def test_a_kernel_is_unrolled_in_time_where_few_channels_come_of_many(lowered):
    values = weights(2, 12, 4, 6, 7)

    def unrolled(kernel, value=values, **geometry):
        def function(x):
            return (conv3d if x.ndim == 5 else conv2d)(x, kernel, **geometry)

        graph = lowered(function, value)
        changed = unroll_in_time(graph)
        assert norm_relative(graph(value), function(value)) <= 1e-15
        (product,) = graph.graph.find_nodes(op="call_function", target=aten.convolution.default)
        assert tuple(product.args[1].meta["val"].shape[:3]) == (
            (len(kernel) * kernel.shape[2], 12, 1) if changed else tuple(kernel.shape[:3])
        )
        return changed

    assert unrolled(weights(8, 12, 3, 3, 3), padding=1) == 1
    assert unrolled(weights(12, 12, 2, 1, 3)) == 1
    assert unrolled(weights(8, 12, 5, 3, 3), padding=(4, 1, 1)) == 1
    # More come out than go in, or too many; one place in time; strides, rests, groups; no time at all.
    assert unrolled(weights(13, 12, 3, 3, 3), padding=1) == 0
    assert unrolled(weights(65, 70, 3, 1, 1), weights(1, 70, 4, 3, 3)) == 0
    assert unrolled(weights(8, 12, 1, 3, 3)) == 0
    assert unrolled(weights(8, 12, 3, 3, 3), stride=2) == 0
    assert unrolled(weights(8, 12, 2, 3, 3), dilation=2) == 0
    assert unrolled(weights(12, 1, 3, 3, 3), groups=12) == 0
    assert unrolled(weights(8, 12, 3, 3), values[:, :, 0]) == 0


def test_padding_in_time_is_left_out_where_it_is_much(lowered):
    def skipped(length, kernel, bias=None, dtype=torch.float64, **geometry):
        values = weights(2, 6, length, 6, 7).to(dtype)
        kernel, bias = kernel.to(dtype), bias if bias is None else bias.to(dtype)

        def function(x):
            return conv3d(x, kernel, bias, **geometry)

        graph = lowered(function, values)
        changed = skip_padding_in_time(graph)
        assert norm_relative(graph(values), function(values)) <= (1e-15 if dtype == torch.float64 else 0)
        products = list(graph.graph.find_nodes(op="call_function", target=aten.convolution.default))
        assert all((node.args[1].meta["val"].shape[2] == 1) == changed for node in products)
        return [node.args[0].meta["val"].shape[2] for node in products]

    kernel, bias = weights(9, 6, 3, 3, 3), weights(9)
    assert skipped(2, kernel, padding=1) == [2, 1, 1]
    assert skipped(4, kernel, bias, padding=(1, 0, 1)) == [4, 3, 3]
    assert skipped(4, kernel, bias, padding=(1, 1, 1), stride=(1, 2, 1)) == [4, 3, 3]
    assert skipped(6, kernel, padding=(2, 1, 2), dilation=(2, 1, 2)) == [6, 4, 4]
    assert skipped(3, weights(9, 6, 5, 1, 1), bias, padding=(2, 0, 0)) == [3, 2, 2, 1, 1]
    # Places that meet nothing but padding go.
    assert skipped(1, kernel, bias, padding=1) == [1]
    assert skipped(2, weights(9, 6, 7, 3, 3), bias, padding=(3, 1, 1)) == [2, 1, 1]
    assert skipped(2, weights(9, 6, 4, 3, 3), padding=1) == [1, 1]
    # Few frames are padding, strides, no place that meets all frames, few bits.
    assert skipped(5, kernel, padding=1) == [5]
    assert skipped(4, kernel, padding=1, stride=2) == [4]
    assert skipped(2, weights(9, 6, 2, 3, 3), padding=(2, 1, 1)) == [2]
    assert skipped(2, kernel, padding=1, dtype=torch.bfloat16) == [2]


def test_relevance_is_summed_over_a_clips_channels_by_a_convolution(lowered):
    clip, images, features = weights(2, 3, 4, 6, 7), weights(2, 3, 6, 7), weights(2, 5, 4, 6, 7)

    def summed(function, value):
        graph = lowered(function, value)
        changed = sum_by_convolution(graph)
        assert graph(value).shape == function(value).shape
        assert norm_relative(graph(value), function(value)) <= 1e-15
        assert count_convolutions(graph) == changed
        return changed

    assert summed(lambda x: (x * x).sum(1), clip) == 1
    assert summed(lambda x: (x * x).sum(1), images) == 1
    # Other channels, other axes, an axis that stays.
    assert summed(lambda x: (x * x).sum(1), features) == 0
    assert summed(lambda x: (x * x).sum((1, 2)), clip) == 0
    assert summed(lambda x: (x * x).sum(2), clip) == 0
    assert summed(lambda x: (x * x).sum(1, keepdim=True), clip) == 0
