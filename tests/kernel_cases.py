"""Random selections for the CUDA kernel: maps, settings and launches; how its results are judged; the host build."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers import assert_mask_close
from selrel_kernels import plan, reference

HOST = Path(__file__).parent / "selrel_kernels" / "host"
SOURCE = Path(str(resources.files("selrel_kernels") / "csrc/select_motion.cu"))
TYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
SETTINGS = {
    "sign": ("absolute", "rising", "falling"),
    "sigma": ("signed", "absolute"),
    "border": ("replicate", "zero"),
    "normalise": ("none", "author-2020"),
}
EPS32 = float(np.finfo(np.float32).eps)


@dataclass
class Case:
    """One selection. ``thresholds`` take the place of ``n_sigma`` and the settings, which are then the default ones."""

    relevance: torch.Tensor
    n_sigma: float = 1.0
    settings: dict[str, str] = field(default_factory=lambda: {name: values[0] for name, values in SETTINGS.items()})
    thresholds: tuple[float, ...] | None = None

    @property
    def flags(self) -> int:
        """The settings as the source takes them."""
        return plan.flags(**self.settings, calibrated=self.thresholds is not None)

    def check(self, motion: torch.Tensor, mask: torch.Tensor, what: str = "") -> int:
        """Hold a result against the definition in float64; return how many voxels differ, all of them on the edge.

        A clip with NaN or infinity keeps nothing. What is kept has the bits of the map, all else is zero.
        """
        relevance = self.relevance.detach().cpu()
        motion, mask = motion.cpu(), mask.cpu()
        assert motion.shape == relevance.shape
        assert motion.dtype == relevance.dtype
        wide = (mask[:, None] if relevance.ndim == 5 else mask).expand(relevance.shape)
        bits = torch.int32 if relevance.dtype == torch.float32 else torch.int16
        same = torch.where(wide, relevance.contiguous().view(bits), 0) == motion.contiguous().view(bits)
        assert same.all(), f"{what}: {(~same).sum()} values are neither the map's nor zero"
        gradient = reference.motion_gradient(relevance.double(), self.settings["border"], self.settings["normalise"])
        if self.thresholds is None:
            threshold = reference.sigma_threshold(gradient, self.n_sigma, self.settings["sigma"])
        else:
            threshold = reference.mass_threshold(relevance.double(), self.thresholds)
        sign = self.settings["sign"]
        margin = (gradient.abs() if sign == "absolute" else gradient if sign == "rising" else -gradient) - threshold
        differing = 0
        for index in range(len(relevance)):
            if not relevance[index].isfinite().all():
                assert not mask[index].any(), f"{what}: clip {index} is not finite and keeps voxels"
                continue
            args = (mask[index], margin[index] > 0, margin[index])
            try:
                differing += assert_mask_close(*args, band=4 * 32 * EPS32 * self._size(index), most=1)
            except AssertionError as error:
                raise AssertionError(f"{what} clip {index}: {error}") from None
        return differing

    def _size(self, index: int) -> float:
        """The greatest sum of magnitudes in a clip, in the unit of G: rounding is a share of it."""
        clip = self.relevance[index].detach().cpu().double()
        size, total = (clip.abs().sum(0), clip.sum(0)) if clip.ndim == 4 else (clip.abs(), clip)
        scale = float(total.abs().max())
        if self.settings["normalise"] == "author-2020" and scale > 0:
            low, high = float(total.min()), float(total.max())
            scale = (high - low) if low < 0 and high > low else scale
            return float(size.max()) / scale
        return float(size.max())


def random_case(seed: int, largest: tuple[int, ...] = (3, 3, 7, 14, 24), dtype: torch.dtype | None = None) -> Case:
    """A selection of a random map: any of its shapes, types, memory layouts, values and settings."""
    rng = np.random.default_rng(seed)
    shape = [int(rng.integers(2 if axis == 2 else 1, most + 1)) for axis, most in enumerate(largest)]
    for axis in range(2, 5):
        if rng.random() < 0.12:
            shape[axis] = 2 if axis == 2 else 1
    values = torch.from_numpy(rng.standard_normal(shape))
    kind = rng.integers(7)
    if kind == 1:
        values = values.abs()
    elif kind == 2:  # flat, with exact zeros and a part that moves
        values = torch.where(values > 1.5, values, torch.round(values[:, :, :1]))
    elif kind == 3:
        values = -values.abs() - float(rng.choice([0.0, 3.0]))
    elif kind == 4:  # every clip of another size
        values = values * torch.from_numpy(10.0 ** rng.integers(-4, 4, shape[0]))[:, None, None, None, None]
    elif kind == 5 and rng.random() < 0.3:
        values = values[:, :, :1].expand(shape).clone()
    dtype = dtype or list(TYPES)[int(rng.integers(3))]
    if dtype != torch.float16 and rng.random() < 0.15:
        values = values * 2.0 ** int(rng.integers(-100, 100))
    relevance = _laid_out(values.to(dtype), rng)
    if rng.random() < 0.2:
        relevance = relevance[:, 0]
    case = Case(relevance, n_sigma=float(rng.choice([0.0, 0.5, 1.0, 2.0, 4.0])))
    if rng.random() < 0.2:
        case.thresholds = tuple((rng.random(shape[2]) * 8 / np.prod(shape[2:])).tolist())
    else:
        case.settings = {name: str(rng.choice(options)) for name, options in SETTINGS.items()}
    return case


def _laid_out(values: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    layout = rng.integers(6)
    if layout == 1:
        return values.contiguous(memory_format=torch.channels_last_3d)
    if layout == 2:  # every other row and column of a larger map, from the second on
        larger = values.new_full((*values.shape[:3], 2 * values.shape[3] + 1, 2 * values.shape[4] + 1), 9.0)
        view = larger[..., 1::2, 1::2]
        view.copy_(values)
        return view
    if layout == 3:
        order = [int(axis) for axis in rng.permutation(5)]
        return values.permute(order).contiguous().permute([order.index(axis) for axis in range(5)])
    if layout == 4:
        return values[:, :1].expand(values.shape)
    return values.contiguous()


def random_plan(rng: np.random.Generator, shape: Sequence[int], settings: int) -> plan.Plan:
    """Any launch that the kernels allow for a map of ``shape`` [B,C,T,H,W]: tiles and blocks of any size."""
    clips, _, *sizes = shape
    if rng.random() < 0.25 and not settings & plan.SHIFT:
        size, threads = int(rng.choice([1, 2, 4, 8])), int(rng.choice([32, 64]))
        tile = (sizes[0], -(-sizes[1] // size), sizes[2])
        shared = 16 * (threads + 8 * (1 + size)) + plan.box_bytes(tile)
        return plan.Plan(tile, size, size * int(rng.integers(1, clips + 1)), threads, shared, 0, in_cluster=True)
    if rng.random() < 0.25:
        shared = int(rng.choice([48, 64, 99, 163, 227])) * 1024
        return plan.plan_launches(shape, plan.Limits(int(rng.integers(1, 150)), shared, 80))
    tile = tuple(int(rng.integers(max(1, size // 4), size + 1)) for size in sizes)
    tiles = int(np.prod([-(-size // part) for size, part in zip(sizes, tile, strict=True)]))
    groups, threads = int(rng.integers(1, min(tiles, 60) + 1)), int(rng.choice([32, 32, 64, 64, 128, 256]))
    grid = int(rng.integers(1, clips * groups + 1))
    shared = 16 * (threads + 8) + plan.box_bytes(tile)
    return plan.Plan(tile, groups, grid, threads, shared, clips * groups * 128, in_cluster=False)


def build_on_host(folder: Path, source: Path = SOURCE) -> Path:
    """Compile the kernels for this machine's processor, under AddressSanitizer and UBSan."""
    program = folder / "run_cases"
    command = ["g++", "-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=undefined", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-Wno-clobbered", f'-DSOURCE="{source}"', f"-I{HOST}", str(HOST / "run_cases.cpp"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def run_on_host(
    program: Path, cases: Sequence[tuple[Case, plan.Plan]], folder: Path, *, orders: Sequence[int] = (), **header: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Run selections, all in one process, and return motion relevance and mask of each.

    ``orders`` says in which order the threads of a block run, for each case (default: each another one);
    ``header`` overrides ``clips``, ``clip_stride``, ``only_clip``: the map is one clip of a batch that is not stored.
    """
    given, results = folder / "cases", folder / "results"
    with given.open("wb") as file:
        for index, (case, launch) in enumerate(cases):
            relevance = case.relevance
            shape, strides = plan.as_five(relevance.shape, relevance.stride())
            extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
            flat = torch.as_strided(relevance, (extent,), (1,))
            fields = [launch.in_cluster, list(TYPES).index(relevance.dtype), header.get("clips", shape[0]), *shape[1:]]
            fields += [header.get("clip_stride", strides[0]), *strides[1:], extent, header.get("only_clip", -1)]
            fields += [case.flags, *launch.tile, launch.groups, launch.threads, launch.grid, launch.shared_bytes]
            fields += [orders[index] if orders else index % 5]
            file.write(struct.pack(f"{len(fields)}qd", *fields, case.n_sigma))
            file.write(_bytes(flat))
            if case.thresholds is not None:
                file.write(np.asarray(case.thresholds, np.float32).tobytes())
    done = subprocess.run([program, given, results], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    content = results.read_bytes()
    outputs, at = [], 0
    for case, _ in cases:
        relevance = case.relevance
        size = relevance.numel() * relevance.element_size()
        motion = torch.frombuffer(bytearray(content[at : at + size]), dtype=relevance.dtype).view(relevance.shape)
        at += size
        mask_shape = (relevance.shape[0], *relevance.shape[-3:])
        mask = torch.frombuffer(bytearray(content[at : at + int(np.prod(mask_shape))]), dtype=torch.uint8)
        assert mask.max() <= 1, "the mask holds bytes that are neither 0 nor 1, or was not written"
        at += mask.numel()
        outputs.append((motion, mask.view(mask_shape).bool()))
    assert at == len(content)
    return outputs


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
