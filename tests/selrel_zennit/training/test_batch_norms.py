"""Batch norms come and go: what is saved computes what was learnt, in the network as it was built."""

import pytest
import torch
from torch import nn

from selrel_zennit.models.small3d import Small3D
from selrel_zennit.training.batch_norms import Normalised, folded, insert, keep_function


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = Small3D(3, width=4).double().eval()
    model.reset_parameters(1)
    return model


@pytest.fixture
def clips():
    return 30 * torch.randn(6, 3, 8, 32, 32, generator=torch.Generator().manual_seed(2)).double()


def test_folding_keeps_the_outputs_and_the_keys(network, clips):
    keys = list(network.state_dict())
    assert insert(network) == 6
    network.double().train()
    for _ in range(3):
        network(clips)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    network.eval()
    plain = folded(network)
    assert list(plain.state_dict()) == keys
    assert not any(isinstance(module, Normalised) for module in plain.modules())
    torch.testing.assert_close(plain(clips), network(clips), rtol=1e-10, atol=1e-10)


def test_a_network_that_knows_something_stays_what_it_was(network, clips):
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-2, 2)
    before = network(clips)
    insert(network)
    network.double()
    assert not torch.allclose(network(clips), before)
    keep_function(network, clips)
    torch.testing.assert_close(network.eval()(clips), before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded(network)(clips), before, rtol=1e-9, atol=1e-9)
    # In training, batch statistics are those of these clips: the same again. Dropout is not what this is about.
    network.train()
    network.drop.eval()
    torch.testing.assert_close(network(clips), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", [nn.BatchNorm3d(4), nn.GroupNorm(2, 4), nn.InstanceNorm3d(4)])
def test_a_network_with_norms_of_its_own_is_left_alone(norm):
    model = nn.Sequential(nn.Conv3d(3, 4, 3), norm)
    assert insert(model) == 0
    assert type(model[0]) is nn.Conv3d
