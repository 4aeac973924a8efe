"""Zennit itself as the reference of a certificate: the model of an artifact built again, its weights checked."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from selrel_kernels import select_motion
from selrel_zennit.attribution import VideoAttributor, build_method, one_hot
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.errors import InputError
from selrel_zennit.explanation import Explanation
from selrel_zennit.models import load_model

from ..artifact.format import Artifact
from .certify import Array, Explain

_REMEDY = "compare with the golden cases: --against golden"


def rebuild(artifact: Artifact, weights: str | None = None, network: str | None = None) -> VideoAttributor:
    """Return the attributor that an artifact was made from, by its ``info``.

    ``weights`` says where the weights lie now, where that is not the place they were exported from, ``network`` what
    that is called now. Raises InputError where the artifact does not say what it was made from, where its network
    is not to be found, and where the weights found are others.
    """
    info = artifact.info if network is None else {**artifact.info, "model": network}
    missing = [name for name in ("method", "model", "weights", "clip_spec") if info.get(name) is None]
    if missing:
        raise InputError(f"{artifact.path} does not say its {', '.join(missing)}: {_REMEDY}")
    _check_is_here(artifact, str(info["model"]))
    named = str(info["weights"])
    # Artifacts from before it was written down are loaded for their number of classes.
    given = {"num_classes": artifact.num_classes, **(info.get("loaded_with") or {})}
    if named.startswith("random seed "):
        named, given["seed"] = "random", int(named.removeprefix("random seed "))
    spec = ClipSpec.from_dict(info["clip_spec"])
    try:
        model = load_model(info["model"], weights or named, spec=spec, **given)
    except InputError as error:
        raise InputError(
            f"{artifact.path} was made from {info['model']} with weights {named}, which cannot be loaded ({error}): "
            f"say where they are by --weights, or {_REMEDY}"
        ) from None
    found = model.provenance["sha256"]  # type: ignore[index]
    if found != info.get("weights_sha256"):
        raise InputError(
            f"{weights or named} is not the weight file that {artifact.path} was made from (its hash differs): "
            "give that one by --weights"
        )
    return build_method(info["method"], model, **(info.get("options") or {}))


def bare_network(attributor: VideoAttributor, artifact: Artifact) -> Callable[[Array], Array]:
    """Return a function that gives the logits [B,K] of the network as it was loaded, without rules or canonizers."""
    spec = replace(ClipSpec.from_dict(artifact.info["clip_spec"]), stride=1)

    def logits(clips: Array) -> Array:
        with torch.no_grad():
            return attributor.network(torch.from_numpy(_as_clips(clips, spec))).numpy()  # type: ignore[no-any-return]

    return logits


def _as_clips(clips: Array, spec: ClipSpec) -> Array:
    if clips.dtype != np.uint8:
        return clips
    return spec.from_pixels(np.stack([spec.pixels(frames) for frames in clips]))


def _check_is_here(artifact: Artifact, model: str) -> None:
    """Raise InputError where the module of a user's own network is not in this folder nor on Python's path."""
    module = model.partition(":")[0].partition(".")[0]
    if ":" not in model:
        return
    sys.path.insert(0, "")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    finally:
        sys.path.remove("")
    if found is None:
        raise InputError(
            f"{artifact.path} was made from {model}, and there is no module {module} here: call this where it is, give "
            f"--model package.module:factory, or {_REMEDY}"
        )


def zennit_reference(attributor: VideoAttributor, artifact: Artifact) -> Explain:
    """Return a function that explains as an artifact should, by its attributor: (clips as the artifact takes, target).

    Use it within ``with attributor:``; the relevance is in float32, whatever the artifact's precision.
    """
    settings: dict[str, Any] = {name: value for name, value in artifact.selection.items() if name != "alpha"}
    # Frames are those of one clip, already taken at the stride.
    spec = replace(ClipSpec.from_dict(artifact.info["clip_spec"]), stride=1)

    def explain(clips: Array, target: Any) -> Explanation:
        clips = _as_clips(clips, spec)
        chosen: list[torch.Tensor] = []

        def initial_relevance(logits: torch.Tensor) -> torch.Tensor:
            wanted = torch.as_tensor(target).reshape(-1).expand(len(logits))
            chosen.append(torch.where(wanted == -1, logits.argmax(1), wanted))
            return one_hot(chosen[0], logits.shape[1]).to(logits)

        logits, relevance = attributor(torch.from_numpy(clips), initial_relevance)
        summed = relevance.sum(1)
        motion, mask = select_motion(summed, **settings)
        return Explanation(*(value.numpy() for value in (logits, chosen[0], summed, motion, mask)))

    return explain
