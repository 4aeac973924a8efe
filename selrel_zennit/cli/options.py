"""Options that several commands share, and what they become. Without torch until a model is asked for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..clips.spec import ClipSpec
from ..errors import InputError
from ..files import atomic_path
from ..text import close_names, key_values

if TYPE_CHECKING:
    import torch
    from torch import nn

F = TypeVar("F", bound=Callable[..., Any])


def model_options(command: F) -> F:
    """Add --model, --weights, --num-classes, --output, --clip-spec, --class-names, --device, --threads and --seed."""
    for option in reversed(
        (
            click.option(
                "--model",
                "model_name",
                default="demo",
                show_default=True,
                help="A name of `selrel list models`, or package.module:factory.",
            ),
            click.option("--weights", help="A weight file (safetensors or a state dict), embedded, own or random."),
            click.option(
                "--num-classes", type=click.IntRange(1, 10**6), help="Classes of the network  [default: the file's]"
            ),
            click.option(
                "--output",
                metavar="N|KEY",
                help="The logits among a network's outputs: place, key or attribute  [default: what is called logits]",
            ),
            click.option(
                "--clip-spec", help="A ClipSpec as a JSON file, or the name of a C3D variant  [default: the model's]"
            ),
            click.option("--class-names", type=click.Path(), help="A text file, one class name a line."),
            click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
            click.option(
                "--threads", type=click.IntRange(1, 1024), help="CPU threads of torch  [default: torch's own]"
            ),
            click.option(
                "--seed",
                type=click.IntRange(0, 2**63 - 1),
                default=0,
                show_default=True,
                help="Seed of random weights.",
            ),
        )
    ):
        command = option(command)
    return command


def style_options(command: F) -> F:
    """Add --cmap, --level, --relevance-norm and --theme, the fields of ``Style``."""
    for option in reversed(
        (
            click.option(
                "--cmap", default="coldnhot", show_default=True, help="Zennit's colour map, or one in its language."
            ),
            click.option(
                "--level",
                type=click.FloatRange(0, min_open=True),
                default=1.0,
                show_default=True,
                help="Level of the colour map.",
            ),
            click.option(
                "--relevance-norm",
                type=click.Choice(["symmetric", "absolute", "unaligned"]),
                default="symmetric",
                show_default=True,
                help="How relevance is scaled to colours.",
            ),
            click.option(
                "--theme",
                type=click.Choice(["dark", "light"]),
                default="dark",
                show_default=True,
                help="Background of pictures and film.",
            ),
        )
    ):
        command = option(command)
    return command


def json_option(command: F) -> F:
    """Add --json PATH."""
    return click.option("--json", "json_path", help="Write the figures as JSON to this file; - is standard output.")(
        command
    )


def allow_unseen_option(command: F) -> F:
    """Add --allow-unseen."""
    return click.option(
        "--allow-unseen",
        is_flag=True,
        help="Explain in spite of operations that no rule of the method sees; every output then says so.",
    )(command)


def open_model(
    model_name: str,
    weights: str | None,
    num_classes: int | None,
    output: str | None,
    clip_spec: str | None,
    class_names: str | None,
    device: str,
    threads: int | None,
    seed: int,
) -> nn.Module:
    """Return the network that the options of ``model_options`` name. Raises InputError."""
    import torch

    from ..models import load_model

    if threads:
        torch.set_num_threads(threads)
    spec = read_spec(clip_spec) if clip_spec is not None else None
    taken = int(output) if output is not None and re.fullmatch(r"-?\d{1,4}", output) else output
    model = load_model(
        model_name, weights, num_classes=num_classes, seed=seed, spec=spec, output=taken, device=torch_device(device)
    )
    prefix = model.provenance.get("prefix")  # type: ignore[operator,union-attr]
    if prefix is not None:
        print(f"weights: {prefix}", file=sys.stderr)
    if class_names is not None:
        model.class_names = _read_names(class_names)  # type: ignore[assignment]
    return model


def weights_entry(provenance: dict[str, Any]) -> dict[str, Any] | str:
    """Return how a summary names the weights: file and hash, or "embedded", "own", "random seed N"."""
    weights = provenance["weights"]
    if weights == "embedded" or provenance["sha256"] is None:
        return str(weights)
    entry = {"file": weights, "sha256": provenance["sha256"], "layout": provenance["layout"]}
    return {**entry, "prefix": provenance["prefix"]} if "prefix" in provenance else entry


def method_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` pairs; see ``key_values``."""
    return key_values(pairs, "--option")


def write_json(path: str | None, figures: Any) -> None:
    """Write ``figures`` where --json says, if it says so."""
    if path is None:
        return
    text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    with atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def torch_device(name: str) -> torch.device:
    """Return the device of --device. Raises InputError where there is none."""
    import torch

    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
    except RuntimeError:
        raise InputError(f"--device {name!r}: give cpu, cuda or cuda:N{close_names(name, ['cpu', 'cuda'])}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch finds no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


def read_spec(name: str) -> ClipSpec:
    """Return the ClipSpec of --clip-spec: a variant of C3D, or a JSON file. Raises InputError for neither."""
    from ..models.c3d_layouts import VARIANTS

    if name in VARIANTS:
        return VARIANTS[name]
    try:
        return ClipSpec.from_dict(json.loads(Path(name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"--clip-spec {name}: no such file, and no variant; variants: {', '.join(VARIANTS)}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"--clip-spec {name}: not a ClipSpec ({error})") from None


def _read_names(path: str) -> list[str]:
    try:
        names = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--class-names {path}: cannot be read as text ({error})") from None
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise InputError(f"--class-names {path}: holds no names; give one a line")
    return names
