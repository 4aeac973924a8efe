"""selrel live: a camera, the class, and what of it is motion, on a page in the browser."""

from __future__ import annotations

import ipaddress
import sys
import webbrowser
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selrel_zennit.class_names import class_index
from selrel_zennit.errors import InputError
from selrel_zennit.loop import TOP

from ..live.engines import ArtifactEngine, Engine
from ..live.events import Events
from ..live.guard import LOOPBACK, SHORTEST_TOKEN
from ..live.pipeline import Live
from ..live.sources import open_source
from .run import condition, settings_entries
from .runner_options import open_named, runner_options, settings_of

if TYPE_CHECKING:
    from ..runners import Runner

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


@click.command()
@click.argument("source", required=False)
@click.option(
    "--artifact",
    "artifacts",
    multiple=True,
    metavar="F.onnx",
    help="Explain by a file of `selrel export`, without torch; repeated: rungs, the best first.",
)
@click.option("--model", "model_name", default="demo", show_default=True, help="Without --artifact: the network.")
@click.option("--weights", help="Without --artifact: a weight file, embedded, own or random.")
@click.option("--class-names", type=click.Path(), help="Without --artifact: a text file, one class name a line.")
@click.option("--method", default="dtd", show_default=True, help="Without --artifact: a method, the top rung.")
@runner_options
@click.option("--target", default="top1", show_default=True, help="top1, a class index, or a class name.")
@click.option("--budget", type=click.FloatRange(0.01, 60), default=0.5, show_default=True, help="Seconds a window.")
@click.option("--explain-when", metavar="CLASS:PROB", help="Explain only windows where CLASS (or any) has this.")
@click.option("--hop", type=click.IntRange(1, 1000), help="Frames from window to window  [default: a clip's span]")
@click.option("--record", type=click.Path(), metavar="DIR", help="Keep each event in a folder of its own.")
@click.option("--record-limit", default="1G", show_default=True, help="Bytes (K, M, G) that --record may take.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to serve at; any but loopback needs --token."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to serve at.")
@click.option("--no-browser", is_flag=True, help="Do not open the page; it opens by itself on a terminal alone.")
@click.option("--token", envvar="SELREL_LIVE_TOKEN", help="What a page is asked for; safer in SELREL_LIVE_TOKEN.")
@click.option("--allow-host", "names", multiple=True, help="A host name under which the page may be asked for.")
@click.option("--clock", is_flag=True, help="Draw the time into the frames, to measure the latency by.")
def live(
    source: str | None,
    artifacts: tuple[str, ...],
    model_name: str,
    weights: str | None,
    class_names: str | None,
    method: str,
    runner: str,
    provider: str | None,
    threads: int | None,
    runner_settings: tuple[str, ...],
    target: str,
    budget: float,
    explain_when: str | None,
    hop: int | None,
    record: str | None,
    record_limit: str,
    host: str,
    port: int,
    no_browser: bool,
    token: str | None,
    names: tuple[str, ...],
    clock: bool,
) -> None:
    """Explain SOURCE live: a camera's number, an rtsp:// or http:// address, a file (looped), or the embedded clip.

    Serves one page: the video with its relevance, the class, and a gauge of motion above what a still camera shows.
    Takes the best way to explain that keeps within --budget on this machine, and changes it as the load does.
    """
    served = _hosts(host, names, token)
    for needed in ("starlette", "uvicorn", "websockets"):
        if find_spec(needed) is None:
            raise InputError(
                f"selrel live needs {needed}, which is not installed: pip install starlette uvicorn websockets"
            )
    from ..live.server import Hub, make_app, serve

    events = Events(None if record is None else Path(record), _bytes(record_limit))
    opened = open_source(source)
    with ExitStack() as stack:
        engines: list[Engine] = []
        for path in artifacts:
            run: Runner = stack.enter_context(
                open_named(path, runner, provider, threads, **settings_of(runner_settings))
            )
            engines.append(ArtifactEngine(run, settings_entries(run.artifact, run, None)))  # type: ignore[attr-defined]
        if not artifacts:
            engines += _in_torch(model_name, weights, class_names, method, threads)
        _check_alike(engines)
        first = engines[0]
        when = condition(explain_when, first.num_classes, first.class_names)
        index = class_index(target, first.num_classes, first.class_names)
        if when is not None and index == TOP:
            index = when.target
        hub = Hub()
        view = Live(
            opened,
            engines,
            hub.publish,
            budget=budget,
            target=index,
            when=when,
            hop=hop,
            events=events,
            clock=clock,
            log=lambda text: print(text, file=sys.stderr, flush=True),
        )

        def started(bound: int) -> None:
            shown = f"[{host}]" if ":" in host else host
            print(f"{opened.name}: http://{shown}:{bound}/ (stop with Ctrl+C)", flush=True)
            if not no_browser and sys.stdout.isatty():
                webbrowser.open(f"http://{shown}:{bound}/")

        stack.enter_context(view)
        serve(make_app(view, hub, served, token), host, port, started)


def _hosts(host: str, names: tuple[str, ...], token: str | None) -> tuple[str, ...]:
    """Return the host names to serve. Raises InputError for an address other than loopback without a token."""
    if host == "localhost":
        own = True
    else:
        try:
            own = ipaddress.ip_address(host).is_loopback
        except ValueError:
            raise InputError(f"--host {host!r}: give an IP address, such as 127.0.0.1 or 0.0.0.0") from None
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise InputError(f"--token: give at least {SHORTEST_TOKEN} printable ASCII characters")
    if not own and token is None:
        raise InputError(f"--host {host} is reachable from outside: give a --token, or leave it at 127.0.0.1")
    return (*LOOPBACK, host, *names)


def _bytes(text: str) -> int:
    number, unit = (text[:-1], _UNITS[text[-1].upper()]) if text[-1:].upper() in _UNITS else (text, 1)
    if not number.isdecimal() or not 0 < int(number) * unit < 10**15:
        raise InputError(f"--record-limit {text!r}: give bytes, such as 500M or 2G")
    return int(number) * unit


def _in_torch(
    model_name: str, weights: str | None, class_names: str | None, method: str, threads: int | None
) -> list[Any]:
    """Return the engines of a method in torch, which is loaded here."""
    if find_spec("torch") is None:
        raise InputError("without --artifact selrel live needs torch: give an artifact of `selrel export`")
    from selrel_zennit.cli.options import open_model

    from ..live.torch_engines import torch_engines

    model = open_model(model_name, weights, None, None, None, class_names, "cpu", threads, 0)
    return list(torch_engines(model, method))


def _check_alike(engines: list[Engine]) -> None:
    """Raise InputError where engines do not take the same clips, or know other classes: one cannot follow the other."""
    first = engines[0]
    for other in engines[1:]:
        if (other.spec, other.num_classes, other.class_names) != (first.spec, first.num_classes, first.class_names):
            raise InputError(
                f"{other.name} takes other clips or classes than {first.name}: export both from one network"
            )
