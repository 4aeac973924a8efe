"""What all attributors of this package share: the model is left as it was found, and calls leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from zennit.attribution import Attributor

from ..composites import release_hooks
from ..errors import InputError
from .completion import completed
from .convolution import FastConvolutions
from .fit import check_devices, check_mode, named_faults
from .record import Recorder

AttrOutput = torch.Tensor | Callable[[torch.Tensor], torch.Tensor] | None


class VideoAttributor(Attributor):
    """A Zennit attributor that can be called thousands of times inside one ``with`` and restores the model exactly.

    Called with a clip [B,3,T,H,W] and an output attribution (a tensor [B,K], or a function of the logits that returns
    one), it returns the logits [B,K] and the attribution [B,3,T,H,W], both detached, whatever the caller's gradient
    mode. After a call, also one that raised, the hooks hold no tensors; on leaving the ``with`` block every module has
    the very parameters it had before (Zennit 1.0 puts new ones in their place) and no hooks.

    ``composite`` is any of Zennit's; what it lacks on video networks is added, see Completed.

    ``info`` says what the attributor is; ``build_method`` fills it in. ``records`` is False for methods without one
    backward pass that relevance at a layer could be read from. ``fast_convolutions`` is True for methods that run
    convolutions by FastConvolutions; the others take torch's kernels, so that they equal Zennit's to the last bit.
    """

    records: ClassVar[bool] = True
    fast_convolutions: ClassVar[bool] = False

    def __init__(self, model: nn.Module, composite: Any = None, attr_output: AttrOutput = None) -> None:
        composite = None if composite is None else completed(composite)
        super().__init__(model=model, composite=composite, attr_output=attr_output)
        self.info: dict[str, Any] = {}
        self._parameters_before: list[tuple[nn.Module, dict[str, Any]]] = []
        self._recorder: Recorder | None = None

    @property
    def recorded(self) -> dict[str, torch.Tensor]:
        """Relevance at the output of each layer that ``record_at`` named, [B,C,T,H,W], of the last call alone."""
        return self._recorder.recorded if self._recorder else {}

    def record_at(self, layers: str | Iterable[str]) -> None:
        """Keep the relevance at the output of these modules from now on; see Recorder.

        Raises InputError for a layer that does not exist, and for a method that has no relevance there.
        """
        if not self.records:
            raise InputError(f"{type(self).__name__} has no relevance inside the network: leave out record")
        self._recorder = Recorder(self.model, layers)

    def __enter__(self) -> VideoAttributor:
        if not self._parameters_before:
            self._parameters_before = [(module, dict(module._parameters)) for module in self.model.modules()]
        try:
            super().__enter__()
        except BaseException:
            # Python calls no __exit__ where __enter__ raised; a half-registered composite must not stay.
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> Literal[False]:
        try:
            super().__exit__(exc_type, exc_value, traceback)
        finally:
            for module, parameters in self._parameters_before:
                if any(module._parameters.get(name) is not value for name, value in parameters.items()):
                    module._parameters.clear()
                    module._parameters.update(parameters)
            self._parameters_before = []
        return False

    def __call__(self, input: torch.Tensor, attr_output: AttrOutput = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], attribution [B,3,T,H,W]); see the class.

        Raises InputError for a model in training mode or on another device, and where dropout is active.
        """
        check_mode(self.model)
        check_devices(self.model, input)
        with torch.inference_mode(False), torch.enable_grad():
            # A tensor made under inference mode cannot be differentiated; its clone can.
            input = input.clone() if input.is_inference() else input.detach()
            try:
                with (
                    named_faults(self.model),
                    self._recorder or nullcontext(),
                    FastConvolutions() if self.fast_convolutions else nullcontext(),
                ):
                    output, attribution = super().__call__(input, attr_output)
            finally:
                if self.composite is not None:
                    release_hooks(self.composite)
            return output.detach(), attribution.detach()
