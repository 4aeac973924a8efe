"""A small network with every kind of layer the compiler has to lower, clips with ties, and graphs of functions."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import selrel_zennit as sr
from selrel_deploy import compile_explanation
from selrel_deploy.artifact import export
from selrel_deploy.compiler import ExplanationGraph
from selrel_deploy.compiler.capture.lower import lower


class Varied(nn.Module):
    """Batch norm, a sum, overlapping, average and adaptive pools, strided, grouped and dilated convolutions."""

    cam_layer = "relu3"
    num_classes = 5
    spec = sr.ClipSpec(frames=6, short_side=16, crop=16)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 4, 3, stride=(1, 2, 2), padding=1)
        self.bn1 = nn.BatchNorm3d(4)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool3d(3, stride=(1, 2, 2), padding=1)
        self.conv2 = nn.Conv3d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool2 = nn.AvgPool3d((2, 1, 1))
        self.conv3 = nn.Conv3d(4, 6, 3, stride=2, padding=1, groups=2)
        self.relu3 = nn.ReLU()
        self.pool3 = nn.AdaptiveAvgPool3d((1, 2, 1))
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(12, 5)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        low = self.pool1(self.relu1(self.bn1(self.conv1(clip))))
        low = self.relu2(self.conv2(low)) + low
        return self.fc(self.flatten(self.pool3(self.relu3(self.conv3(self.pool2(low))))))


def varied(dtype: torch.dtype = torch.float64) -> Varied:
    generator = torch.Generator().manual_seed(4)
    model = Varied()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    model.bn1.running_mean.copy_(torch.randn(4, generator=generator) * 20)  # type: ignore[union-attr, operator]
    model.bn1.running_var.copy_(torch.rand(4, generator=generator) * 900 + 100)  # type: ignore[union-attr, operator]
    return model.to(dtype).eval().requires_grad_(False)


def clip_with_ties(spec: sr.ClipSpec, seed: int) -> torch.Tensor:
    """Return a clip as real video is: flat regions, saturated pixels, repeated frames, a moving block, and noise."""
    rng = np.random.default_rng(seed)
    pixels = np.full((1, spec.frames, spec.crop, spec.crop, 3), (40 * seed + 60) % 256, np.uint8)
    noisy = pixels[:, :, :, spec.crop // 2 :]
    noisy[:] = rng.integers(0, 256, noisy.shape, dtype=np.uint8)
    for step in range(spec.frames):
        pixels[:, step, 3:7, (step + seed) % 6 : (step + seed) % 6 + 3] = 255
    pixels[:, 4] = pixels[:, 3]
    return torch.from_numpy(spec.from_pixels(pixels))


def norm_relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def weights(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.fixture(scope="session", autouse=True)
def _read_rules_once() -> Generator[None]:
    """Keep what torch's exporter reads anew for each export: the source of 500 rules, which takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        # An inner part of torch: where it is another one, tests only take longer.
        with contextlib.suppress(ImportError, AttributeError):
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            read = functools.cache(ONNXRegistry.from_torchlib)

            def fresh(opset_version: int) -> ONNXRegistry:
                registry = copy.copy(read(opset_version))
                registry.functions = {name: list(rules) for name, rules in registry.functions.items()}
                return registry

            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(fresh))
        yield


@pytest.fixture
def lowered() -> Callable[..., fx.GraphModule]:
    """Return a function that traces another one on example tensors and lowers what it recorded."""

    def build(function: Callable[..., object], *examples: torch.Tensor) -> fx.GraphModule:
        graph = make_fx(function)(*examples)
        for node, value in zip(graph.graph.find_nodes(op="placeholder"), examples, strict=True):
            node.meta["example"] = value
        return lower(graph)

    return build


NAMES = ["walk", "run", "jump: high", "sit", "swim"]
FRAME_SIZE = (40, 50)


class Artifacts(dict[str, Path]):
    """The artifacts of DTD on a small C3D whose classes have names; those that few tests ask for are exported then."""

    OPTIONS: ClassVar[dict[str, dict[str, Any]]] = {
        "whole": {},
        "split": {"split": True},
        "uint8": {"input": "uint8", "frame_size": FRAME_SIZE},
    }

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self["whole"]  # before a test puts a stand-in in place of something that an export takes

    @functools.cached_property
    def graph(self) -> ExplanationGraph:
        model = sr.load_model("networks:small_c3d", "own")
        return compile_explanation(sr.build_method("dtd", model), torch.zeros(1, *model.spec.shape))

    def __missing__(self, kind: str) -> Path:
        path = self.folder / f"{kind}.onnx"
        with FileLock(self.folder.with_name(f"{kind}.lock")):
            if not path.exists():
                export(self.graph, path, info={"class_names": NAMES}, **self.OPTIONS[kind])
        self[kind] = path
        return path


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """Return artifacts by kind: whole, split, and with frames as input ("uint8"). Tests side by side share them."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "artifacts"
    folder.mkdir(exist_ok=True)
    return Artifacts(folder)
