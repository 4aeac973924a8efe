"""The project's own kernel, behind an engine on the same stream: relevance → motion relevance and mask. No torch."""

from __future__ import annotations

import numpy as np

from selrel_kernels.launcher import CudaCore, Selector
from selrel_kernels.plan import KernelUnavailable, flags
from selrel_zennit.errors import InputError

from ...artifact.format import Artifact
from .cuda_memory import CudaDevice, DeviceArray

# What it makes, in the artifact's names.
SELECTED = ("motion_relevance", "mask")

_DEFAULTS = {"sign": "absolute", "sigma": "signed", "border": "replicate", "normalise": "none"}


class MotionKernel:
    """Selects the map that an engine leaves in ``relevance``, as the artifact says. ``arrays`` holds what it makes.

    Raises InputError where the kernel cannot run.
    """

    def __init__(self, cuda: CudaDevice, artifact: Artifact, relevance: DeviceArray) -> None:
        said = artifact.selection
        self._cuda, self._relevance = cuda, relevance
        self._n_sigma = float(said.get("n_sigma", 0.0))
        self._settings = flags(
            **{name: said.get(name, default) for name, default in _DEFAULTS.items()}, calibrated="thresholds" in said
        )
        try:
            self._selector = Selector(CudaCore(cuda.ordinal))
            self._plan = self._selector.plan(relevance.shape, self._settings)
        except KernelUnavailable as error:
            raise InputError(
                f"the selection kernel does not run here ({error}); or open with selection='graph'"
            ) from None
        self.arrays = {
            "motion_relevance": cuda.array(relevance.shape, relevance.dtype, host=True),
            "mask": cuda.array(relevance.shape, np.bool_, host=True),
        }
        self._workspace = cuda.array((self._plan.workspace_bytes,), np.uint8)
        self._thresholds: DeviceArray | None = None
        if "thresholds" in said:
            self._thresholds = cuda.array((len(said["thresholds"]),), np.float32, host=True)
            np.copyto(self._thresholds.host, said["thresholds"], casting="unsafe")
            self._thresholds.upload()

    def launch(self) -> None:
        """Put the selection on the stream."""
        shape = self._relevance.shape
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        self._selector.select(
            self._plan,
            relevance=self._relevance.address,
            motion=self.arrays["motion_relevance"].address,
            mask=self.arrays["mask"].address,
            workspace=self._workspace.address,
            shape=shape,
            strides=strides,
            dtype=str(self._relevance.dtype),
            stream=self._cuda.handle,
            n_sigma=self._n_sigma,
            settings=self._settings,
            thresholds=self._thresholds.address if self._thresholds is not None else 0,
        )
