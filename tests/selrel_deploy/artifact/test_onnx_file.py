"""torch → ONNX: what the exporter is given, and what it makes of it."""

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn

from selrel_deploy.artifact.onnx_file import to_onnx


class Plain(nn.Module):
    def forward(self, input, target):
        return (input * 2).relu().reshape(2, 6) + target


class Squeezing(nn.Module):
    """The exporter has no function for this."""

    def forward(self, input, target):
        return (input * 2).relu().squeeze((0,)) + target


class InPlace(nn.Module):
    def forward(self, input, target):
        return (input * 2).relu_().add_(target)


@pytest.mark.parametrize(("module", "times"), [(Plain(), 0), (Squeezing(), 1), (InPlace(), 1)])
def test_only_what_needs_it_is_decomposed(module, times, monkeypatch):
    asked = []
    decompose = torch.export.ExportedProgram.run_decompositions

    def noted(program, table=None):
        asked.append(program)
        return decompose(program, table)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", noted)
    given = torch.tensor([[[-1.0, 0.0, 2.0] * 2] * 2]), torch.tensor(3)
    model = to_onnx(module, given, ("input", "target"), ("output",))
    assert len(asked) == times
    run = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (made,) = run.run(None, {"input": given[0].numpy(), "target": given[1].numpy()})
    assert np.array_equal(made, module(*given).numpy())
