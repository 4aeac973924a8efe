"""What all attributors of this package share: they work on a copy of the network, and know what they did not see."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode
from zennit.attribution import Attributor, constant
from zennit.canonizers import Canonizer

from ..composites import release_hooks
from ..errors import InputError
from ..network.copying import own_copy
from ..network.coverage import Coverage, Unseen
from ..network.plain_layers import make_layers_plain
from ..network.same_network import check_same
from ..stems import misplaced_boxes
from .completion import completed
from .convolution import FastConvolutions
from .faults import named_faults
from .fit import check_devices, check_mode, refuse_unseen
from .provenance import label
from .record import Recorder

AttrOutput = torch.Tensor | Callable[[torch.Tensor], torch.Tensor] | None


class VideoAttributor(Attributor):
    """A Zennit attributor that can be called thousands of times inside one ``with`` and never touches the network.

    Called with a clip [B,3,T,H,W] and an output attribution (a tensor [B,K], or a function of the logits that returns
    one), it returns the logits [B,K] and the attribution [B,3,T,H,W], both detached, whatever the caller's gradient
    mode. After a call, also one that raised, the hooks hold no tensors.

    It works on a copy of the network, which shares the memory of its parameters: ``model`` is that copy inside the
    ``with`` block, where rules and canonizers are in place, and the network itself outside. ``network`` is always the
    network itself. Layers whose weight is computed anew in each run are plain ones in the copy.

    With a composite, the first clip of its shape that an attributor meets is a check (every clip, where the network
    decides by values): what is explained must have the logits of the network (``same_network``), and every operation
    that relevance comes through must have a rule or need none (``coverage``). Where either fails, InputError says so.
    With ``strict = False`` what no rule saw is explained all the same, and listed in ``unseen`` and ``info["unseen"]``.

    ``composite`` is any of Zennit's; what it lacks on video networks is added, see Completed.

    ``info`` says what the attributor is; ``build_method`` fills it in. ``records`` is False for methods without one
    backward pass that relevance at a layer could be read from. ``fast_convolutions`` is True for methods that run
    convolutions by FastConvolutions; the others take torch's kernels, so that they equal Zennit's to the last bit.
    """

    records: ClassVar[bool] = True
    fast_convolutions: ClassVar[bool] = False

    def __init__(self, model: nn.Module, composite: Any = None, attr_output: AttrOutput = None) -> None:
        composite = None if composite is None else completed(composite)
        self._prepared: nn.Module | None = None
        super().__init__(model=model, composite=composite, attr_output=attr_output)
        self.info: dict[str, Any] = {}
        self.strict = True
        self.unseen: list[Unseen] = []
        self._met: set[Any] = set()
        self._plain: list[str] = []
        self._misplaced: list[Unseen] = []
        self._recorder: Recorder | None = None
        self._record: list[str] = []

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in (self.info.get("options") or {}).items())
        method = self.info.get("method") or type(self).__name__
        network = self.info.get("model") or type(self.network).__name__
        return f"<{method}({options}) of {network}>"

    @property
    def model(self) -> nn.Module:
        """The copy of the network that is explained, inside the ``with`` block; outside of it the network."""
        return self.network if self._prepared is None else self._prepared

    @model.setter
    def model(self, network: nn.Module) -> None:
        self.network = network

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
        self._record = [layers] if isinstance(layers, str) else list(layers)
        self._recorder = Recorder(self.model, self._record)

    def __enter__(self) -> VideoAttributor:
        try:
            # What is made under inference mode could not be differentiated later.
            with torch.inference_mode(False):
                if self._prepared is None:
                    self._prepared = own_copy(self.network)
                    self._plain = [] if self.composite is None else make_layers_plain(self._prepared)
                super().__enter__()
                self._misplaced = [] if self.composite is None else misplaced_boxes(self._prepared)
        except BaseException:
            # Python calls no __exit__ where __enter__ raised; a half-registered composite must not stay.
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> Literal[False]:
        try:
            super().__exit__(exc_type, exc_value, traceback)
        finally:
            self._prepared = None
        return False

    def __call__(self, input: torch.Tensor, attr_output: AttrOutput = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], attribution [B,3,T,H,W]); see the class.

        Raises InputError for a model in training mode or on another device, where dropout is active, and where the
        check of a first clip fails.
        """
        check_mode(self.network)
        check_devices(self.network, input)
        if self._prepared is None:
            with self:
                return self(input, attr_output)
        if attr_output is None:
            attr_output = self.attr_output_fn
        attr_output_fn = attr_output if callable(attr_output) else constant(attr_output)
        with torch.inference_mode(False), torch.enable_grad():
            # A tensor made under inference mode cannot be differentiated; its clone can.
            input = input.clone() if input.is_inference() else input.detach()
            meeting = self._meeting(input)
            if self._record:
                self._recorder = Recorder(self.model, self._record)
            try:
                with (
                    named_faults(self.model, input),
                    self._recorder or nullcontext(),
                    FastConvolutions() if self.fast_convolutions else nullcontext(),
                    nullcontext() if meeting is None else meeting.watching(),
                ):
                    checked = attr_output_fn if meeting is None else self._checked(meeting, input, attr_output_fn)
                    output, attribution = self.forward(input, checked)
            finally:
                if self.composite is not None:
                    release_hooks(self.composite)
            return output.detach(), attribution.detach()

    def check(self, clip: torch.Tensor) -> None:
        """Make the check of a first clip [B,3,T,H,W], by a forward pass of the network and one under the rules.

        Calls make it by themselves where there is something to check; this one always compares the logits.
        Raises InputError where it fails.
        """
        check_mode(self.network)
        check_devices(self.network, clip)
        with (
            nullcontext() if self._prepared is not None else self,
            torch.inference_mode(False),
            torch.enable_grad(),
            named_faults(self.model, clip),
        ):
            clip = clip.clone() if clip.is_inference() else clip.detach()
            coverage = Coverage(self.model)
            try:
                with coverage.watching():
                    logits = self.model(clip.requires_grad_())
                    self._settle(coverage, clip, logits, compare=True)
            finally:
                if self.composite is not None:
                    release_hooks(self.composite)

    def _meeting(self, clip: torch.Tensor) -> Coverage | None:
        """Return what watches the first clip of its kind; None for later ones, and where there are no rules."""
        if self.composite is None or _get_current_dispatch_mode() is not None:
            return None
        if self._meeting_key(clip) in self._met:
            return None
        return Coverage(self.model)

    def _checked(
        self, meeting: Coverage, clip: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return ``attr_output_fn`` with the check of a first clip in front, between forward and backward pass."""

        def check(logits: torch.Tensor) -> torch.Tensor:
            self._settle(meeting, clip, logits, compare=self._rewritten)
            return attr_output_fn(logits)

        return check

    def _settle(self, coverage: Coverage, clip: torch.Tensor, logits: Any, compare: bool) -> None:
        """Judge what a forward pass under the rules has shown."""
        if not isinstance(logits, torch.Tensor):
            coverage.on = False
            return  # whoever asked for an explanation says what is wrong with it
        unseen = [] if self.composite is None else [*self._misplaced, *coverage.stop(logits)]
        if self.strict:
            refuse_unseen(label(self.info) if "attributor" in self.info else type(self).__name__, unseen)
        if compare:
            # Without the modes that watch, and by the faster kernels: the bare pass is to cost little.
            with _disable_current_modes(), FastConvolutions():
                check_same(own_copy(self.network), self.model, clip.detach(), logits)
        self.unseen = unseen
        if unseen:
            self.info["unseen"] = [str(one) for one in unseen]
        if not coverage.decides:
            self._met.add(self._meeting_key(clip))

    def _meeting_key(self, clip: torch.Tensor) -> Any:
        """Return what a check holds for: the kind of clip, and the numbers of the network."""
        return self.strict, tuple(clip.shape), clip.dtype, clip.device, _state(self.network)

    @property
    def _rewritten(self) -> bool:
        """Say whether the copy computes anything in another way than the network."""
        handles = [] if self.composite is None else self.composite.handles
        return bool(self._plain) or any(
            isinstance(one, Canonizer) and getattr(one, "rewrites", True) for one in handles
        )


def _state(model: nn.Module) -> int:
    """Return a number that changes when the network's numbers are replaced or written to."""
    values = (*model.parameters(), *model.buffers())
    return hash(tuple((id(value), 0 if value.is_inference() else value._version) for value in values))
