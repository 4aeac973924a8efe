"""The benchmark of a network on a GPU as text. The standard library alone."""

from __future__ import annotations

from typing import Any

from .table import NOTHING, SPREAD, fine_ms, grid, parity_of


def gpu_table(result: dict[str, Any]) -> str:
    """Return what ``bench_gpu`` found, as tables for a terminal. Times in milliseconds, three digits."""
    gpu, model, clips = result["gpu"], result["model"], result["clips"]
    weights = f", weights {model['weights']}" if model["weights"] else ""
    device = f"{gpu['name']}, CUDA {gpu['cuda']}" if gpu else f"{result['machine']['processor']}: a rehearsal, no GPU"
    fill = clips["fill"]
    heading = (
        f"{model['model']}{weights} · {len(clips['windows'])} windows: {clips['source']}\n{device}\n"
        f"A clip fills in {fine_ms(fill['seconds'])} ms ({fill['frames']} frames at {fill['fps']:g} per second). "
        f"Times are of a whole batch, in ms, on the device by {result['rows'][0]['clock']}."
    )
    heading += "".join(f"\nWARNING: {text}" for text in result["warnings"])
    parts = [heading, _on_device(result["rows"]), _end_to_end(result["rows"], result["budget"]), _copies(result)]
    parts += ["\n".join(_notes(result))]
    return "\n\n".join(part for part in parts if part)


def _on_device(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        stages, sampled = row["stages"], row["sampled"] or {}
        peak = row["memory"]["peak"]
        lines.append(
            [
                *_names(row),
                fine_ms(stages["forward"]["p50"]),
                *_spread(stages["explanation"]),
                f"{row['ratios']['over_forward']:.2f}",
                NOTHING if peak is None else f"{peak / 1e6:.0f}",
                _median(sampled, "sm_mhz"),
                _median(sampled, "watts"),
                _median(sampled, "celsius"),
                parity_of(row),
            ]
        )
    head = ["method", "batch", "precision", "runner", "forward", *SPREAD, "÷ forward", "peak MB", "MHz", "W", "°C"]
    return grid("Explanation on the device, with its selection", [*head, "parity, error"], lines, 4)


def _end_to_end(rows: list[dict[str, Any]], budget: float) -> str:
    lines = []
    for row in rows:
        stages = row["stages"]
        lines.append(
            [
                *_names(row),
                fine_ms(stages["read"]["p50"]),
                *_spread(stages["end_to_end"]),
                str(row["streams"]["clips_read_elsewhere"]),
                str(row["streams"]["clips_read_here"]),
                f"{row['budget']['share']:.0%}",
                "holds" if row["budget"]["held"] else "misses",
            ]
        )
    head = ["method", "batch", "precision", "runner", "read+resize", *SPREAD, "streams", "reading here"]
    title = "End to end: from NumPy clips to NumPy maps; streams at 30 frames per second, by p99"
    return grid(title, [*head, f"p99 of {budget:g} s", "verdict"], lines, 4)


def _copies(result: dict[str, Any]) -> str:
    lines = []
    for sizes in result["copies"]:
        for kind in ("pageable", "pinned"):
            if kind in sizes:
                lines.append(
                    [
                        str(sizes["batch"]),
                        kind,
                        f"{sizes['bytes_to_device'] / 1e6:.1f}",
                        *(fine_ms(sizes[kind]["to_device"][p]) for p in ("p50", "p99")),
                        f"{sizes['bytes_back'] / 1e6:.1f}",
                        *(fine_ms(sizes[kind]["back"][p]) for p in ("p50", "p99")),
                    ]
                )
    head = ["batch", "memory", "MB to the device", "p50", "p99", "MB back", "p50", "p99"]
    return grid("Copies", head, lines, 2)


def _notes(result: dict[str, Any]) -> list[str]:
    return [
        f"left out: {one['method']} {one['precision']}, batch {one['batch']}: {one['why']}" for one in result["skipped"]
    ]


def _names(row: dict[str, Any]) -> list[str]:
    runner = row["runner"] + (", CUDA graph" if row["cuda_graph"] else "")
    return [row["method"], str(row["batch"]), row["precision"], runner]


def _median(sampled: dict[str, Any], name: str) -> str:
    return f"{sampled[name]['median']:.0f}" if name in sampled else NOTHING


def _spread(stage: dict[str, Any]) -> list[str]:
    return [fine_ms(stage[name]) for name in SPREAD]
