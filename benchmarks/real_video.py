"""The paper's tables and the static-bias audit on real video: three small sets of labelled clips, one network each.

    SELREL_DATA=FOLDER python benchmarks/real_video.py [--sets ut-interaction tennis arid] [--work FOLDER]

FOLDER/actions holds the sets, each with a labels.csv: UT-Interaction (Ryoo and Aggarwal, SDHA 2010), tennis strokes (of
doi 10.1155/mse/1483523) and a part of ARID (Action Recognition in the Dark). None of their clips, nor weights
trained on them, are part of this project. Where --work holds no weights for a set, Small3D is trained first, from
scratch: some minutes to half an hour on one core. Results go to results/real_video.json.

Test videos choose the best epoch, since the sets have no third split: accuracies are a little too good, and what is
said of maps and of frozen clips is not touched by that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, write_json
from scipy.stats import spearmanr

import selrel_zennit as sr
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.evaluate import evaluate, read_dataset
from selrel_zennit.evaluate.controls import CONTROLS
from selrel_zennit.evaluate.measures import ANSWERS
from selrel_zennit.evaluate.tables import Table
from selrel_zennit.training import RECIPES, train
from selrel_zennit.training.loop import BEST, LOG

RESULTS = Path(__file__).parent / "results" / "real_video.json"
METHODS = ("dtd", "gradcam", "guided_backprop", "guided_gradcam", "motion_lrp:reference=middle", "random")
# pointing shows one person in a narrow frame, and others leave it out; no_interaction has no class of its own.
UT_CLASSES = ("handshaking", "hugging", "kicking", "punching", "pushing")
SETS: dict[str, dict[str, Any]] = {
    "ut-interaction": {"classes": UT_CLASSES, "stride": 2, "epochs": 150, "flip": True},
    "tennis": {"classes": None, "stride": 3, "epochs": 60, "flip": False},
    "arid": {"classes": None, "stride": 2, "epochs": 60, "flip": True},
}


def network(name: str, data: Any, work: Path) -> tuple[Any, dict[str, float]]:
    """Return the network of a set, trained where there is none, and what its log says."""
    chosen, folder = SETS[name], work / name
    if not (folder / BEST).exists():
        spec = ClipSpec(stride=chosen["stride"], short_side=80, crop=72)
        recipe = replace(RECIPES["small"], epochs=chosen["epochs"], flip=chosen["flip"])
        train(data, folder, recipe=recipe, spec=spec)
    epochs = json.loads((folder / LOG).read_text())["epochs"]
    said = {"minutes": epochs[-1]["minutes"], "epochs": len(epochs)}
    return sr.load_model("small3d", folder / BEST), said


def by_class(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each class's margins and accuracies, and whether their order agrees with what freezing takes."""
    answers = [row for row in rows if row["method"] == ANSWERS]
    found: dict[str, Any] = {}
    for label in sorted({row["label"] for row in answers}):
        mine = [row for row in answers if row["label"] == label]
        mean = {key: float(np.mean([row[key] for row in mine])) for key in ("margin", "motion", "still", "blank")}
        least, greatest = (float(np.mean([row[key] for row in mine])) for key in ("least frozen", "greatest frozen"))
        right, frozen = (float(np.mean([row[key] for row in mine])) for key in ("right", "right frozen"))
        frozen_margin = float(np.mean([row["margin"] - row["motion"] for row in mine]))
        found[label] = {
            **mean,
            "frozen least": least,
            "frozen mean": frozen_margin,
            "frozen greatest": greatest,
            "right": right,
            "right frozen": frozen,
            "videos": len(mine),
        }
    shares = [one["motion"] / one["margin"] for one in found.values()]
    lost = [one["right"] - one["right frozen"] for one in found.values()]
    agrees = float(spearmanr(shares, lost).statistic) if len(set(lost)) > 1 else None
    return {"classes": found, "Spearman, motion ÷ margin with accuracy lost when frozen": agrees}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--work", type=Path, default=Path("out/real_video"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if "SELREL_DATA" not in os.environ:
        print("error: set SELREL_DATA to the folder that holds actions/", file=sys.stderr)
        return 2
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"sets": {}}
    for name in arguments.sets:
        data = read_dataset(Path(os.environ["SELREL_DATA"]) / "actions" / name, classes=SETS[name]["classes"])
        model, trained = network(name, data, arguments.work)
        found = evaluate(model, data, METHODS, store=arguments.work / name / "rows")
        tables: list[Table] = found.tables()
        result["sets"][name] = {
            "trained": trained,
            "videos": len({row["video"] for row in found.rows}),
            "left out": found.done.failed,
            "by class": by_class(found.rows),
            "controls": {
                control: evaluate(model, data, (), store=arguments.work / name / "rows", control=control)
                .table("audit")
                .to_dict()["rows"][0]
                for control in CONTROLS
            },
            "tables": {table.name: table.to_dict() for table in tables},
        }
        result |= {
            "what": "the paper's tables and the static-bias audit on three sets of real clips, Small3D trained on each",
            "command": "SELREL_DATA=FOLDER python benchmarks/real_video.py",
            "machine": machine(),
        }
        write_json(arguments.out, result)
        print(found.table("audit").to_markdown(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
