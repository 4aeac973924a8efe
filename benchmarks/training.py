"""What `selrel train` reaches on labelled videos: accuracy, that of frozen clips, epochs and minutes.

    python benchmarks/training.py FOLDER… --data DATA

Each FOLDER is one that `selrel train --out FOLDER` has filled; the commands are in COMMANDS below, with DATA for the
folder of the data sets. Writes ``results/training.json``: figures alone, for the videos and the weights are not ours to
pass on. The log's figures are not taken on trust: both weight files are loaded, as a user does, and measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from machine import machine, write_json

from selrel_zennit import load_model
from selrel_zennit.evaluate.dataset import Dataset, read_dataset
from selrel_zennit.files import sha256_file
from selrel_zennit.training.checkpoint import BEST, LAST, LOG
from selrel_zennit.training.loop import measure
from selrel_zennit.training.samples import Samples
from selrel_zennit.training.start import spec_of

RESULTS = Path(__file__).parent / "results" / "training.json"
COMMANDS = {
    "ut-interaction": "selrel train DATA/ut-interaction --classes handshaking,hugging,kicking,punching,pushing "
    "--crop 72 --short-side 80 --stride 2 --epochs 150 --threads 1",
    "tennis": "selrel train DATA/tennis --crop 72 --short-side 80 --stride 3 --no-flip --epochs 60 --threads 1",
    "arid": "selrel train DATA/arid --crop 72 --short-side 80 --stride 2 --epochs 60 --threads 1",
}
SOURCES = {
    "ut-interaction": "UT-Interaction, Ryoo and Aggarwal, SDHA 2010; test: sequences that are in no training clip",
    "tennis": "doi 10.1155/mse/1483523",
    "arid": "a subset of ARID, Xu et al. 2021 (arXiv 2006.03876)",
}
# What is to be known of a training that today's command would not repeat.
NOTES = {
    "ut-interaction": "by the command's first version (commit 6424d8a): squares from anywhere in the width, frames "
    "resized by area while it learnt; measured here as everyone else sees it",
}


def row(folder: Path, data: Dataset) -> dict[str, Any]:
    """Return what one training reached, measured again with the weights of its files."""
    log = json.loads((folder / LOG).read_text(encoding="utf-8"))
    settings = log["settings"]
    chosen_on = settings.get("chosen on", "test")
    held_out = data.only(settings["classes"]).part(chosen_on)
    measured: dict[str, dict[str, Any]] = {}
    for name, file in (("best", BEST), ("last", LAST)):
        network = load_model(settings["model"], folder / file)
        found = measure(network, Samples(held_out, spec_of(network), None), frozen=True)
        measured[name] = {key: round(found[key], 4) for key in ("accuracy", "frozen accuracy")}
        measured[name]["sha256"] = sha256_file(folder / file)
        measured[name]["right"] = round(found["accuracy"] * len(held_out))
    best = max(log["epochs"], key=lambda entry: (entry["validation accuracy"], -entry["validation loss"]))
    return {
        "source": SOURCES[data.name],
        "command": COMMANDS[data.name],
        "note": NOTES.get(data.name),
        "chosen on": chosen_on,
        "videos": {"train": settings["videos"]["train"], "held out": len(held_out)},
        "classes": settings["classes"],
        "model": settings["model"],
        "recipe": settings["recipe"],
        "spec": settings["spec"],
        "chance": round(1 / len(settings["classes"]), 4),
        "best": {**measured["best"], "epoch": best["epoch"]},
        "last": measured["last"],
        "epochs": len(log["epochs"]),
        "minutes": round(log["epochs"][-1]["minutes"], 1),
        "curves": {
            key: [round(entry[key], 4) for entry in log["epochs"]]
            for key in ("loss", "accuracy", "validation loss", "validation accuracy")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="the folder with ut-interaction, tennis and arid")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Those of other data sets stay.
    known = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.exists() else {}
    rows = known.get("trainings", {})
    for folder in arguments.folders:
        name = json.loads((folder / LOG).read_text(encoding="utf-8"))["settings"]["data"]
        rows[name] = row(folder, read_dataset(arguments.data / name))
        print(name, json.dumps({key: rows[name][key] for key in ("best", "last", "epochs", "minutes")}), flush=True)
    result = {
        "what": "networks trained by `selrel train` on labelled videos of others, which are not in the project",
        "read": "The best weights are chosen on the held-out videos themselves, so their share is too good; nothing is "
        "chosen for the last. Minutes are on a machine that others used at the same time.",
        "machine": machine(),
        "trainings": {name: rows[name] for name in COMMANDS if name in rows},
    }
    write_json(arguments.results, result, ensure_ascii=False)


if __name__ == "__main__":
    main()
