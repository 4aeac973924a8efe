"""The key layouts of public C3D files: how to rename their keys to this project's, and the ClipSpec of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..clips.spec import ClipSpec
from ..errors import InputError

_MODULES = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b", "fc6", "fc7", "fc8")
_SPORTS1M_CLASSES = 487

# The Caffe pipeline of Tran et al.: BGR, 128×171, less a mean volume [3,16,128,171]; here its means per channel.
_SPORTS1M = ClipSpec(short_side=(128, 171), mean=(90.25, 97.66, 101.41), channel_order="BGR")
_RC3D = ClipSpec(short_side=(128, 171), mean=(90.0, 98.0, 102.0), channel_order="BGR")


@dataclass(frozen=True)
class Layout:
    """A key layout of C3D files.

    ``keys`` maps the modules as the files call them to ours; a module that the files hold twice has two entries.
    ``spec`` is how the files' training cut clips. With ``classes``, only files with that many classes are meant.
    """

    name: str
    source: str
    keys: Mapping[str, str]
    spec: ClipSpec
    classes: int | None = None

    def own_key(self, key: str) -> str | None:
        """Return our name of a file's key, or None where the layout has no such key."""
        module, _, parameter = key.rpartition(".")
        return f"{self.keys[module]}.{parameter}" if module in self.keys and parameter in ("weight", "bias") else None


_OWN = {module: module for module in _MODULES}
_SEQUENTIAL = {
    f"{part}.{index}": module
    for (part, index), module in zip(
        [("features", index) for index in (0, 3, 6, 8, 11, 13, 16, 18)]
        + [("classifier", index) for index in (0, 3, 6)],
        _MODULES,
        strict=True,
    )
}
_MMACTION2_BACKBONE = {
    "conv1a.conv": "conv1",
    "conv2a.conv": "conv2",
    **{f"{module}.conv": module for module in _MODULES[2:8]},
    "fc6": "fc6",
    "fc7": "fc7",
}
_BLOCKS = {
    "layer1.0": "conv1",
    "layer2.0": "conv2",
    **{
        f"layer{block}.{index}": f"conv{block}{letter}" for block in (3, 4, 5) for index, letter in ((0, "a"), (2, "b"))
    },
    "fc6": "fc6",
    "fc7": "fc7",
    "fc8": "fc8",
}

# Tried in this order; where two fit a file equally well, the first is taken.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "c3d-sports1m",
        "DavideA/c3d-pytorch, c3d.pickle",
        _OWN,
        _SPORTS1M,
        classes=_SPORTS1M_CLASSES,
    ),
    Layout("c3d", "this project, and C3D trained as in Hiley et al. 2020", _OWN, ClipSpec()),
    Layout(
        "sequential", "sunnyxiaohu/R-C3D.pytorch; jfzhang95, ucf101-caffe.pth, c3d-pretrained.pth", _SEQUENTIAL, _RC3D
    ),
    Layout(
        "mmaction2",
        "open-mmlab/mmaction2, c3d_sports1m_16x1x1_45e_ucf101_rgb",
        {
            **_MMACTION2_BACKBONE,
            **{f"backbone.{theirs}": ours for theirs, ours in _MMACTION2_BACKBONE.items()},
            "cls_head.fc_cls": "fc8",
        },
        ClipSpec(short_side=128, mean=(104.0, 117.0, 128.0)),
    ),
    Layout("hiley-blocks", "liamhiley/selective_relevance, C3D", _BLOCKS, ClipSpec()),
    Layout("hiley-vgg", "liamhiley/selective_relevance, C3DasVGG", {**_OWN, **_SEQUENTIAL}, ClipSpec()),
)

# Files whose keys are those of layout "c3d", though their clips were cut otherwise: pass one of these as the spec.
VARIANTS: dict[str, ClipSpec] = {
    "jfzhang95": ClipSpec(stride=4, short_side=(128, 171), mean=(90.0, 98.0, 102.0), channel_order="BGR"),
    "sports1m": _SPORTS1M,
}


def recognise(state: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor], ClipSpec]:
    """Return the name of a C3D file's layout, its tensors under our names, and the ClipSpec it was trained with.

    The layout that names the most keys is taken, if it covers at least half the network; keys it does not name are
    left as they are, for ``check_state`` to report. A file without a class layer is recognised too.

    Raises InputError for keys of no known layout, and for a file that holds one module twice with different values.
    """
    layout = max(LAYOUTS, key=lambda one: _matches(one, state))
    # A weight and a bias per module: as many keys as modules is half of them.
    if len({ours for key in state if (ours := layout.own_key(key))}) < len(_MODULES):
        known = ", ".join(f"{one.name} ({next(iter(one.keys))}.weight …)" for one in LAYOUTS if one.classes is None)
        some = ", ".join(list(state)[:3]) or "nothing"
        raise InputError(
            f"not a known layout of C3D weights: found {some} …; known are {known}; rename its keys to one"
        )
    converted: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        ours = layout.own_key(key) or key
        if ours in converted and not torch.equal(converted[ours], tensor):
            raise InputError(f"two different tensors for {ours}, one of them {key}: keep the one that was trained")
        converted.setdefault(ours, tensor)
    return layout.name, converted, layout.spec


def _matches(layout: Layout, state: Mapping[str, torch.Tensor]) -> int:
    own = {key: ours for key in state if (ours := layout.own_key(key))}
    head = next((state[key] for key, ours in own.items() if ours == "fc8.weight"), None)
    if layout.classes is not None and (head is None or head.ndim == 0 or head.shape[0] != layout.classes):
        return 0
    return len(own)
