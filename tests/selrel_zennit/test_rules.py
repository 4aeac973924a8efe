"""Max pools that share relevance in proportion, against loops over their windows."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import selrel_zennit as sr
from maps import norm_relative, relevance_of
from networks import small_c3d
from selrel_zennit.rules import ProportionalMaxPool


def windows_of(pool, shape):
    """All windows of a pool over an input of ``shape``: for each output position, the input positions."""
    per_axis = []
    for axis, size in enumerate(shape):

        def number(value, axis=axis):
            return value[axis] if isinstance(value, tuple) else value

        if hasattr(pool, "output_size"):
            count = number(pool.output_size)
            ranges = [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        else:
            kernel, step, padding = number(pool.kernel_size), number(pool.stride), number(pool.padding)
            ranges, start = [], -padding
            # ceil_mode adds one window where the last one left inputs over, if it starts inside the input.
            while start + kernel <= size + padding or (
                pool.ceil_mode and start < size and start + kernel - step < size + padding
            ):
                ranges.append(range(max(start, 0), min(start + kernel, size)))
                start += step
        per_axis.append(ranges)
    for output in itertools.product(*(range(len(ranges)) for ranges in per_axis)):
        chosen = [ranges[i] for ranges, i in zip(per_axis, output, strict=True)]
        yield output, list(itertools.product(*chosen))


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool3d(2), (4, 4, 6)),
        (nn.MaxPool3d((1, 2, 2)), (2, 4, 4)),
        (nn.MaxPool3d(2, padding=(0, 1, 1)), (2, 7, 7)),
        (nn.MaxPool3d(3, stride=2, padding=1), (5, 6, 7)),
        (nn.MaxPool3d(3, stride=1, padding=1), (3, 4, 5)),
        (nn.MaxPool3d(3, stride=2, ceil_mode=True), (4, 6, 7)),
        (nn.MaxPool3d(2, stride=3), (5, 6, 8)),
        (nn.MaxPool2d((3, 2), stride=(1, 2)), (5, 6)),
        (nn.MaxPool1d(3, stride=2, padding=1), (8,)),
        (nn.MaxPool1d(2), (8,)),
        (nn.AdaptiveMaxPool3d((1, 2, 3)), (3, 4, 7)),
        (nn.AdaptiveMaxPool2d(2), (3, 5)),
    ],
)
def test_proportional_max_pool_equals_loops_over_windows(pool, shape):
    rng = np.random.default_rng(1)
    # A third zeros, some negative, many ties, two channels, and a channel with empty windows only.
    values = rng.integers(-1, 3, (2, 3, *shape)).astype(float)
    values[0, 2] = -1
    values[1, 2] = 0
    tracked = torch.from_numpy(values).requires_grad_()
    hook = ProportionalMaxPool()
    handles = hook.register(pool)
    output = pool(tracked)
    upper = torch.from_numpy(rng.normal(size=tuple(output.shape)))
    (actual,) = torch.autograd.grad(output, tracked, upper)
    handles.remove()

    expected = np.zeros_like(values)
    for item, channel in np.ndindex(2, 3):
        for position, window in windows_of(pool, shape):
            activations = np.array([max(values[(item, channel, *place)], 0) for place in window])
            shares = activations / activations.sum() if activations.any() else np.full(len(window), 1 / len(window))
            for place, part in zip(window, shares, strict=True):
                expected[(item, channel, *place)] += part * float(upper[(item, channel, *position)])
    assert np.allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-14)
    assert float(actual.sum()) == pytest.approx(float(upper.sum()), abs=1e-10)
    assert not hook.stored_tensors


def test_proportional_max_pool_survives_tiny_activations():
    pool, tiny = nn.MaxPool3d(2), torch.full((1, 1, 2, 2, 2), 1e-42, requires_grad=True)
    handles = ProportionalMaxPool().register(pool)
    (relevance,) = torch.autograd.grad(pool(tiny), tiny, torch.full((1, 1, 1, 1, 1), 1e3))
    handles.remove()
    assert torch.allclose(relevance, torch.full_like(relevance, 125.0))


def test_dtd_with_proportional_pools_conserves_relevance(clip):
    model = small_c3d()
    winner, shared = (relevance_of("dtd", model, clip, pool=pool) for pool in ("winner", "proportional"))
    assert float(shared.double().sum()) == pytest.approx(float(winner.double().sum()), abs=1e-4)
    assert norm_relative(shared, winner) > 0.05
    assert torch.equal(winner, relevance_of("dtd", model, clip))


def test_bad_pool():
    with pytest.raises(sr.InputError, match="pool must be 'winner' or 'proportional', got 'mean'"):
        sr.build_method("dtd", small_c3d(), pool="mean")
    for pool, error, message in (
        (nn.MaxPool3d(2, dilation=2), sr.InputError, "dilation"),
        (nn.AvgPool3d(2), TypeError, "AvgPool3d"),
    ):
        hook, values = ProportionalMaxPool(), torch.ones(1, 1, 4, 4, 4, requires_grad=True)
        hook.register(pool)
        with pytest.raises(error, match=message):
            pool(values).sum().backward()
