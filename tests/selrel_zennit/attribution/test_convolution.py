"""Convolutions for attributors against torch's own in float64, and what is left to torch."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from selrel_zennit.attribution import convolution
from selrel_zennit.attribution.convolution import FastConvolutions


@pytest.fixture
def runs(monkeypatch):
    """Count what does not go to torch."""
    count = []
    run = convolution._run
    monkeypatch.setattr(convolution, "_run", lambda *args: count.append(args) or run(*args))
    return count


def layer_and_clip(seed=0, batch=1, bias=True, **settings):
    torch.manual_seed(seed)
    settings = {"kernel_size": 3, "padding": 1, **settings}
    return nn.Conv3d(4, 6, bias=bias, **settings), torch.randn(batch, 4, 5, 9, 8)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": False},
        {"padding": 0},
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": (1, 3, 5), "padding": (0, 1, 2)},
        {"kernel_size": (3, 1, 2), "padding": (2, 0, 1)},
    ],
    ids=str,
)
def test_output_and_gradient_are_those_of_torch_in_float64(settings, batch, runs):
    layer, clip = layer_and_clip(batch=batch, **settings)
    clip.requires_grad_()
    with FastConvolutions():
        output = layer(clip)
    weights = torch.randn(output.shape)
    (gradient,) = torch.autograd.grad(output, clip, weights)
    assert len(runs) == 2

    exact = nn.functional.conv3d(
        clip.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double(), 1, layer.padding
    )
    (expected,) = torch.autograd.grad(exact, clip, weights.double())
    torch.testing.assert_close(output.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_memory_in_another_order(runs):
    layer, clip = layer_and_clip()
    mixed = clip.to(memory_format=torch.channels_last_3d).requires_grad_()
    with FastConvolutions():
        output = layer(mixed)
    (gradient,) = torch.autograd.grad(output, mixed, torch.ones(()).expand_as(output))
    assert len(runs) == 2
    torch.testing.assert_close(output, layer(clip), rtol=1e-5, atol=1e-5)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding": "same"},
        {"padding": (3, 1, 1)},
        {"padding_mode": "replicate", "stride": 2},
    ],
    ids=str,
)
def test_what_it_does_not_know_goes_to_torch(settings, runs):
    layer, clip = layer_and_clip(**settings)
    with FastConvolutions():
        output = layer(clip)
    assert not runs
    assert torch.equal(output, layer(clip))


def test_float64_and_empty_batches_go_to_torch(runs):
    layer, clip = layer_and_clip()
    with FastConvolutions():
        layer(clip[:0])
        layer.double()(clip.double())
    assert not runs


def test_wrong_input_gets_the_error_of_torch():
    layer, clip = layer_and_clip()
    for wrong in (clip[:, :2], clip[0, 0], torch.randn(1, 4, 5, 9)):
        with pytest.raises(RuntimeError) as expected:
            layer(wrong)
        with FastConvolutions(), pytest.raises(RuntimeError) as raised:
            layer(wrong)
        assert str(raised.value) == str(expected.value)
    large = nn.Conv3d(4, 6, 7)
    with FastConvolutions(), pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        large(clip)


def test_a_tracer_sees_plain_convolutions(runs):
    layer, clip = layer_and_clip()
    layer.requires_grad_(False)

    def run(values):
        with FastConvolutions():
            return layer(values)

    graph = make_fx(run)(clip)
    assert not runs
    assert any(node.target == torch.ops.aten.convolution.default for node in graph.graph.nodes)


def test_no_gradient_for_weights_is_computed(runs):
    layer, clip = layer_and_clip()
    with FastConvolutions():
        output = layer(clip.requires_grad_())
    output.sum().backward()
    assert layer.weight.grad is None
    assert clip.grad is not None
