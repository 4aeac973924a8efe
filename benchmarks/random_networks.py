"""Random networks under seven methods, against the slow definition: how many are equal, refused, wrong.

    python benchmarks/random_networks.py [--draws 5000] [--whole 300] [--onnx 300] [--seed 0] [--workers 2]
        [--rows FILE] [--minutes M]

The networks, the definition and what counts as equal are those of tests/random_networks. The first ``--whole`` draws
are held against it under all seven methods, each of the others under one of them in turn. The first ``--onnx`` draws
are compiled too, for one of the methods in turn, exported and run in ONNX Runtime in float32. Every draw's outcomes are
a line of FILE (default: out/random_networks.jsonl), which an interrupted run goes on with; a changed package starts it
anew, unless --keep is given. Writes results/random_networks.json; what was found and mended on the way stays there,
written by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import machine, write_json
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from random_networks.compare import define, on_device, outcome  # noqa: E402
from random_networks.definition import METHODS  # noqa: E402
from random_networks.grammar import KINDS, draw  # noqa: E402
from random_networks.graph import UndefinedError  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "random_networks.json"
ROWS = ROOT / "out" / "random_networks.jsonl"


def rows_of(job: tuple[int, bool, bool]) -> dict[str, Any]:
    """Return the outcomes of one draw: {"seed", "kinds", "eager": {method: […]}, "onnx": {method: […]}}."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seed, whole, onnx = job
    methods = METHODS if whole else METHODS[seed % len(METHODS) :][:1]
    try:
        drawn = draw(seed)
    except RuntimeError:  # drawn too small for its own padding: no network
        return {"seed": seed, "kinds": []}
    row: dict[str, Any] = {"seed": seed, "kinds": drawn.kinds}
    try:
        definition = define(drawn)
        row["eager"] = {method: _short(outcome(drawn, definition, method)) for method in methods}
        if any(found[0] == "wrong" for found in row["eager"].values()):
            _name_ties(drawn, row["eager"])
    except UndefinedError as error:  # the definition has to be extended
        return {**row, "eager": {method: ["undefined", None, str(error)] for method in methods}}
    if onnx:
        with tempfile.TemporaryDirectory() as folder:
            method = METHODS[seed % len(METHODS)]
            row["onnx"] = {method: _short(on_device(drawn, method, Path(folder)))}
    return row


def _name_ties(drawn: Any, found: dict[str, list[Any]]) -> None:
    """Call a wrong map "tie" where it is equal once the clip is moved by a thousandth of a grey level.

    In flat regions and repeated frames values of a pooling window are equal but for rounding, which decides the winner.
    """
    generator = torch.Generator().manual_seed(drawn.seed)
    noise = torch.randn(drawn.clip.shape, generator=generator, dtype=drawn.clip.dtype)
    moved = replace(drawn, clip=drawn.clip + 1e-3 * noise)
    definition = define(moved)
    for method, (kind, error, said) in found.items():
        if kind == "wrong" and outcome(moved, definition, method).kind == "equal":
            found[method] = ["tie", error, said]


def _short(found: Any) -> list[Any]:
    return [found.kind, found.error, found.said]


def fingerprint() -> str:
    """Return a hash of the code that the outcomes hang on."""
    folders = ("selrel_zennit", "deploy/selrel_deploy", "tests/random_networks")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    files = sorted(path for path in files if not path.name.startswith("test_"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def held_rows(path: Path, code: str, keep: bool) -> dict[int, dict[str, Any]]:
    """Return the rows of an interrupted run by seed; none where the code has changed since."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["seed"]: row for row in rows if keep or row["code"] == code}


def summary(rows: list[dict[str, Any]], where: str) -> dict[str, Any]:
    """Return counts of outcomes, refusals by reason, and the seeds of what is neither equal nor refused."""
    all_rows = [row for row in rows if where in row]
    found = [(row, method, *outcome) for row in all_rows for method, outcome in row[where].items()]
    refused = Counter(_reason(said) for *_, kind, _, said in found if kind == "refused")
    errors = sorted(error for *_, error, _ in found if error is not None)
    return {
        "draws": len(all_rows),
        "plain draws": sum(not row["kinds"] for row in all_rows),
        "explanations": len(found),
        "outcomes": dict(Counter(kind for *_, kind, _, _ in found)),
        "outcomes of plain draws": dict(Counter(kind for row, _, kind, _, _ in found if not row["kinds"])),
        "draws refused by a method": sum(any(one[0] == "refused" for one in row[where].values()) for row in all_rows),
        "by method": {m: dict(Counter(kind for _, method, kind, _, _ in found if method == m)) for m in METHODS},
        "by kind": {
            kind: dict(Counter(found_kind for row, _, found_kind, _, _ in found if kind in row["kinds"]))
            for kind in KINDS
        },
        "refused by reason": dict(refused.most_common()),
        "error of what is equal": {
            "median": errors[len(errors) // 2] if errors else None,
            "largest": max((error for *_, kind, error, _ in found if kind == "equal"), default=None),
        },
        "neither": [
            {
                "seed": row["seed"],
                "kinds": row["kinds"],
                "method": m,
                "outcome": kind,
                "error": error,
                "said": said,
            }
            for row, m, kind, error, said in found
            if kind not in ("equal", "refused", "tie")
        ],
    }


def _ranges(seeds: list[int]) -> list[list[int]]:
    """Return the first and last of each run of seeds without a gap."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return runs


def _reason(said: str) -> str:
    """Return a refusal without names and numbers, so that those of one kind are counted together."""
    for pattern, instead in (
        ("|".join(METHODS), "METHOD"),
        (r"\b(stem|body|head|spare|cam)(\.\w+)*", "MODULE"),
        (r"'[^']*'|\([^)]*\)", "…"),
        (r"\d+", "N"),
    ):
        said = re.sub(pattern, instead, said)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--whole", type=int, default=300, help="how many of the draws are explained by all methods")
    parser.add_argument("--onnx", type=int, default=300, help="how many of the draws go through ONNX Runtime too")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=ROWS, help="a line for each draw; an interrupted run goes on")
    parser.add_argument("--minutes", type=float, default=None, help="stop then, and write what there is")
    parser.add_argument("--keep", action="store_true", help="keep rows that other code has made")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    code = fingerprint()
    held = held_rows(arguments.rows, code, arguments.keep)
    seeds = range(arguments.seed, arguments.seed + arguments.draws)
    wanted = {seed: seed < arguments.seed + arguments.onnx for seed in seeds}
    last_whole = arguments.seed + arguments.whole
    jobs = [
        (seed, seed < last_whole, onnx)
        for seed, onnx in wanted.items()
        if seed not in held or (onnx and "eager" in held[seed] and "onnx" not in held[seed])
    ]
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    # Python's own start: a fork of a process that has run torch may hang.
    context = multiprocessing.get_context("spawn")
    end = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    with arguments.rows.open("a", encoding="utf-8") as file, context.Pool(arguments.workers) as pool:
        for row in tqdm(pool.imap_unordered(rows_of, jobs), total=len(jobs)):
            held[row["seed"]] = row
            print(json.dumps({**row, "code": code}), file=file, flush=True)
            if end is not None and time.monotonic() > end:
                break  # leaving the block ends the pool
    rows = [held[seed] for seed in seeds if seed in held]
    before = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else {}
    found = {
        "what": "networks drawn by seed against the definition of tests/random_networks, the first "
        f"{arguments.whole} under seven methods and the rest under one in turn",
        "machine": machine(),
        "seeds": _ranges([row["seed"] for row in rows]),
        "draws too small for their own padding, which are no networks": sum("eager" not in row for row in rows),
        "float64, eager": summary(rows, "eager"),
        "float32, ONNX Runtime": summary(rows, "onnx"),
        "found and mended on the way": before.get("found and mended on the way", []),
    }
    write_json(arguments.out, found, ensure_ascii=False)
    for where in ("float64, eager", "float32, ONNX Runtime"):
        print(where, found[where]["outcomes"])


if __name__ == "__main__":
    main()
