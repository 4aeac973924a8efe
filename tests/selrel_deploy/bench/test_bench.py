"""The benchmark's ratios with a clock of the test's own, its windows and parity; and one real run."""

import json
from functools import partial

import numpy as np
import pytest
import torch

import selrel_zennit as sr
from fake_clock import FakeClock
from networks import small_c3d
from selrel_deploy import compile_explanation
from selrel_deploy.artifact import export
from selrel_deploy.bench import network, report, timing
from selrel_deploy.bench.device import bench_artifact
from selrel_deploy.bench.network import Choice, bench_network
from selrel_deploy.bench.peers import PEERS, peers_of
from selrel_deploy.bench.report import Pacing, Table, measure, silent
from selrel_deploy.bench.rows import Bare, Row, timed_bare
from selrel_deploy.bench.table import table
from selrel_deploy.bench.windows import given_windows, synthetic_windows, video_windows
from selrel_zennit.clips.video import write_mp4

SPEC = sr.ClipSpec(short_side=16, crop=16)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def quick(monkeypatch):
    """Warm up for four rounds, whatever the machine does."""
    monkeypatch.setattr(report, "warm_up", partial(timing.warm_up, least=0.0, most=0.0))


def moving(count, height=40, width=50):
    frames = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8).repeat(count, 0)
    for step in range(count):
        left = (step * 3) % (width - 10)
        frames[step, 5:25, left : left + 10] = (255, 40, 0)
    return frames


@pytest.fixture
def video(tmp_path):
    write_mp4(tmp_path / "clip.mp4", moving(70), 20)
    return tmp_path / "clip.mp4"


# --- windows ---


def test_windows_of_a_video_are_its_frames(video):
    windows = video_windows([str(video)], SPEC)
    assert windows.real
    assert len(windows) >= 16
    assert len(set(windows.places)) == len(windows)
    # Those side by side first, then those half-way.
    assert [start for _, start in windows.places[:8]] == [0, 16, 32, 48, 8, 24, 40, 4]
    frames, rotation = sr.read_frames(video), windows.rotation()
    for index in [*range(len(windows)), 0, 3, len(windows) + 5]:
        start = windows.places[index % len(windows)][1]
        assert np.array_equal(rotation.read(index), SPEC.array(frames, start)), index
    raw = video_windows([str(video)], SPEC, raw=True).rotation()
    assert np.array_equal(raw.read(1), frames[None, 16:32])


def test_windows_of_a_folder_are_of_all_its_videos(tmp_path):
    for name in ("a", "b"):
        write_mp4(tmp_path / f"{name}.mp4", moving(40), 20)
    windows = video_windows([str(tmp_path)], SPEC)
    assert windows.source == "2 real videos"
    assert {name for name, _ in windows.places} == {"a.mp4", "b.mp4"}
    clips = windows.moving(3)
    assert len(clips) == 3
    assert all(clip.shape == (1, *SPEC.shape) and np.abs(np.diff(clip, axis=2)).max() > 0 for clip in clips)


def test_a_long_video_gives_64_windows_and_a_short_one_is_refused(tmp_path):
    write_mp4(tmp_path / "long.mp4", moving(66 * 16), 20)
    assert len(video_windows([str(tmp_path / "long.mp4")], SPEC)) == 64
    write_mp4(tmp_path / "short.mp4", moving(20), 20)
    with pytest.raises(sr.InputError, match="windows of 16 frames in 1 videos: give longer ones or more"):
        video_windows([str(tmp_path / "short.mp4")], SPEC)
    with pytest.raises(sr.InputError, match=r"missing\.mp4 does not exist"):
        video_windows([str(tmp_path / "missing.mp4")], SPEC)


def test_synthetic_windows_say_that_they_are():
    windows = synthetic_windows(SPEC)
    assert (len(windows), windows.real) == (16, False)
    assert "synthetic" in windows.source
    clips = [windows.rotation().read(index) for index in range(17)]
    assert clips[0].shape == (1, *SPEC.shape)
    assert np.array_equal(clips[0], clips[16])
    assert not np.array_equal(clips[0], clips[1])
    raw = synthetic_windows(SPEC, (24, 30)).rotation().read(2)
    assert raw.shape == (1, 16, 24, 30, 3)
    assert raw.dtype == np.uint8


# --- figures ---


def steps(clock, laps):
    def step(clip, watch):
        for name, seconds in laps.items():
            clock.work(seconds)
            watch.lap(name)

    return step


def fake_row(clock, runner, laps, **fields):
    forward, selection = fields.get("forward", f"forward {runner} fp32"), fields.get("selection")
    parity = {"grade": "exact", "norm_error": 1e-6}
    return Row("dtd", runner, "fp32", None, steps(clock, laps), forward, selection, {}, {"peak": 10**8}, parity)


def fake_bare(clock, name, seconds):
    return Bare(name, name.split()[1], "fp32", lambda value: clock.work(seconds), parity=None)


def test_ratios_shares_and_verdicts(clock):
    forward, on_device = fake_bare(clock, "forward eager fp32", 0.5), fake_bare(clock, "forward onnxruntime fp32", 0.4)
    selection = fake_bare(clock, "selection onnxruntime", 0.002)
    found = Table(
        rows=[
            fake_row(clock, "zennit", {"original": 2.9, "selection": 0.1}, forward="forward eager fp32"),
            fake_row(clock, "onnxruntime", {"explanation": 1.2}, selection="selection onnxruntime"),
        ],
        bares={bare.name: bare for bare in (forward, on_device, selection)},
    )
    windows = given_windows([np.zeros((1, 3, 16, 8, 8), np.float32)] * 3, "clip")
    result = measure(
        found, windows, Pacing(budget=1.6, rounds=5, paced=True), {"threads": 1}, silent, clock, clock.rest
    )
    zennit, runner = result["rows"]
    assert zennit["stages"]["explanation"]["p50"] == pytest.approx(3.0)
    assert zennit["stages"]["explanation"]["n"] == 5
    assert zennit["ratios"]["over_forward"] == pytest.approx(6.0)
    assert zennit["ratios"]["over_zennit"] == pytest.approx(1.0)
    assert zennit["ratios"]["selection_over_original"] == pytest.approx(0.1 / 2.9)
    assert runner["ratios"]["over_forward"] == pytest.approx(3.0), "of its own forward pass, not of eager's"
    assert runner["ratios"]["over_zennit"] == pytest.approx(0.4)
    assert runner["ratios"]["selection_over_original"] == pytest.approx(0.002 / 1.198)
    assert runner["original_p50"] == pytest.approx(1.198)
    assert (zennit["budget"]["held"], runner["budget"]["held"]) == (False, True)
    assert runner["budget"]["share"] == pytest.approx(0.75)
    assert (zennit["paced"]["miss_rate"], runner["paced"]["latency"]["n"]) == (1.0, 3)
    assert result["rounds"] == 5
    text = table({**result, "model": {"model": "fake", "weights": "none"}})
    assert "misses" in text
    assert "holds" in text
    assert "exact 1e-06" in text
    assert "5 samples a row: p99 is close to the slowest of them" in text


def test_a_part_of_a_graph_is_timed_as_it_runs_there(clock):
    windows, value = given_windows([np.zeros((1, 3, 16, 8, 8), np.float32)] * 3, "clip"), np.ones(2)
    seen = []

    def call(given):
        clock.work(0.3 if len(seen) % 2 == 0 else 0.1)  # asleep, awake
        seen.append(given)

    timed = timed_bare(Bare("selection eager", "eager", "fp32", call, input=value), windows, clock)
    assert [timed(index)["call"] for index in range(2)] == pytest.approx([0.1, 0.1])
    assert all(given is value for given in seen)
    forward = timed_bare(Bare("forward eager fp32", "eager", "fp32", call), windows, clock)
    assert [forward(index)["call"] for index in range(2)] == pytest.approx([0.3, 0.1])


# --- real rows ---


def test_peers_compute_the_same_explanation():
    model = small_c3d()
    clip = synthetic_windows(model.spec).moving(1)[0]
    clip = torch.from_numpy(clip)
    for method, peers in PEERS.items():
        found, missing = peers_of(method, model)
        assert set(found) | set(missing) == set(peers)
        assert not missing
        expected = sr.build_method(method, model)(clip, sr.one_hot(2, 5))[1].sum(1)
        for peer, relevance in found.items():
            got = relevance(clip, 2)
            assert got.shape == expected.shape
            cosine = torch.nn.functional.cosine_similarity(got.flatten(), expected.flatten(), dim=0)
            # pytorch-grad-cam resizes by SciPy, other than trilinearly.
            assert cosine > (0.8 if peer == "pytorch-grad-cam" else 0.99999), (method, peer)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A benchmark of two methods on a small network: one with peers, one that does not compile."""
    folder = tmp_path_factory.mktemp("videos")
    write_mp4(folder / "clip.mp4", moving(70), 20)
    model = small_c3d()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "warm_up", partial(timing.warm_up, least=0.0, most=0.0))
        windows = video_windows([str(folder)], model.spec)
        choice = Choice(("gradcam", "smoothgrad"), ("eager", "onnxruntime"))
        return bench_network(model, windows, choice, Pacing(rounds=3))


def test_every_row_has_figures_and_parity(result):
    rows = {(row["method"], row["runner"]): row for row in result["rows"]}
    runners = ["zennit", "captum", "pytorch-grad-cam", "eager", "onnxruntime"]
    assert list(rows) == [*(("gradcam", name) for name in runners), ("smoothgrad", "zennit")]
    assert result["skipped"][0]["why"] == "the method is no fixed computation, so it is not compiled"
    for (_, runner), row in rows.items():
        stages = row["stages"]
        assert set(stages) == {"read", "explanation", "selection", "end_to_end"}
        for stage in stages.values():
            assert len(stage["samples"]) == 3
            assert 0 < stage["min"] <= stage["p50"] <= stage["p99"] <= stage["max"]
        ends = zip(
            stages["read"]["samples"], stages["explanation"]["samples"], stages["end_to_end"]["samples"], strict=True
        )
        assert all(whole >= 0.99 * (read + compute) for read, compute, whole in ends)
        assert row["forward"] == f"forward {'onnxruntime' if runner == 'onnxruntime' else 'eager'} fp32"
        assert row["ratios"]["over_forward"] > 0
        assert row["memory"]["peak"] is None or row["memory"]["peak"] > 0
        expected = {"zennit": ("reference",), "pytorch-grad-cam": ("approximate", "failed")}
        assert row["parity"]["grade"] in expected.get(runner, ("exact", "faithful")), row["parity"]
    assert rows["gradcam", "pytorch-grad-cam"]["parity"]["up_to_a_factor"]
    assert rows["gradcam", "onnxruntime"]["provider_used"] == "CPUExecutionProvider"
    assert len(rows["gradcam", "onnxruntime"]["artifact_sha256"]) == 64
    assert [one["name"] for one in result["bare"] if one["name"].startswith("forward")] == [
        "forward eager fp32",
        "forward onnxruntime fp32",
    ]


def test_the_benchmark_is_json_and_a_table(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["schema"].startswith("selrel-bench ")
    assert result["clips"]["real"]
    assert len(result["clips"]["windows"]) >= 16
    assert result["clips"]["fill"] == {"frames": 16, "fps": 30.0, "seconds": 16 / 30}
    assert result["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(result["machine"]["versions"]["torch"])
    text = table(result)
    assert "A clip fills in 533 ms" in text
    for title in ("Forward pass alone", "Explanation, with its selection", "Original and selective", "End to end"):
        assert title in text
    assert max(map(len, text.splitlines())) < 200
    for huge, words in ((True, "threads · huge pages\n"), (False, "threads · small pages\n"), (None, "threads\n")):
        assert words in table({**result, "machine": {**result["machine"], "huge_pages": huge}})


def test_the_readme_table_is_made_from_it(result, readme_tables, monkeypatch):
    monkeypatch.setattr(readme_tables, "read", lambda name: {"precisions": {"fp32": result, "bf16": result}})
    lines = readme_tables.deploy_latency().splitlines()
    rows = result["rows"]
    again = [row for row in rows if row["runner"] != "zennit"]
    assert len(lines) == 2 + len(rows) + len(again)
    first, captum = rows[0], rows[1]
    assert lines[2].startswith(f"| `zennit` | `fp32` | {first['ratios']['over_forward']:.2f} | ")
    assert f"| {captum['ratios']['over_forward']:.2f} | {captum['ratios']['over_zennit']:.3f} |" in lines[3]


@pytest.mark.parametrize(
    ("processor", "shown"),
    [
        ("AMD EPYC", "AMD EPYC"),
        ("AMD EPYC 7763 64-Core Processor", "AMD EPYC 7763"),
        ("Intel(R) Xeon(R) Processor @ 2.80GHz", "Intel Xeon"),
        ("Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz", "Intel Core i7-8650U"),
        ("ARMv8 Processor rev 1 (v8l)", "ARMv8 rev 1 (v8l)"),
        ("Processor", "Processor"),
    ],
)
def test_the_readme_table_is_made_on_any_processor(result, readme_tables, monkeypatch, processor, shown):
    pages = {
        name: {**result, "machine": {**result["machine"], "processor": processor, "huge_pages": name == "huge"}}
        for name in ("huge", "small")
    }
    monkeypatch.setattr(readme_tables, "read", lambda name: {"precisions": pages})
    _, _, *lines = readme_tables.deploy_latency().splitlines()
    assert {line.split("|")[-2].strip() for line in lines} == {f"{shown}, huge pages", shown}


def test_what_is_missing_is_said(quick, monkeypatch):
    model = small_c3d()
    monkeypatch.setattr(network, "peers_of", lambda method, model: ({}, ["captum"]))
    found = network.importlib.util.find_spec
    monkeypatch.setattr(network.importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    windows = synthetic_windows(model.spec)
    monkeypatch.setattr(network, "RUNNERS", {"openvino": network.RUNNERS["openvino"]})
    result = bench_network(model, windows, Choice(("gradcam",)), Pacing(rounds=2))
    skipped = {(one["runner"], one["why"]) for one in result["skipped"]}
    assert skipped == {("captum", "not installed"), ("openvino", "not installed")}
    assert "left out: gradcam openvino fp32: not installed" in table(result)
    assert "synthetic" in table(result)
    with pytest.raises(sr.InputError, match="openvino is not installed: pip install openvino"):
        bench_network(model, windows, Choice(("gradcam",), ("openvino",)), Pacing(rounds=2))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(("dtx",)), "no method named 'dtx'"),
        (Choice(runners=("eagre",)), "no runner named 'eagre' .*eager"),
        (Choice(precisions=("fp64",)), "no precision named 'fp64'"),
        (Choice(runners=("onnxruntime",), precisions=("bf16",)), "onnxruntime runner does not run bf16"),
    ],
)
def test_names_and_pairs_that_do_not_exist(choice, message):
    with pytest.raises(sr.InputError, match=message):
        choice.method_names(), choice.pairs()


def test_of_all_only_pairs_that_exist():
    pairs = Choice(precisions=("all",)).pairs()
    assert ("eager", "bf16") in pairs
    assert ("onnxruntime", "fp32") in pairs
    assert ("onnxruntime", "bf16") not in pairs
    assert set(Choice(precisions=("bf16",)).pairs()) == {("eager", "bf16"), ("inductor", "bf16")}
    methods = Choice(("all",)).method_names()
    assert "dtd" in methods
    assert "smoothgrad" not in methods


# --- artifacts ---


@pytest.fixture(scope="module")
def graph():
    model = small_c3d()
    return compile_explanation(sr.build_method("gradcam", model), torch.zeros(1, *model.spec.shape))


@pytest.mark.slow
def test_an_artifact_has_no_forward_row_unless_it_is_split(graph, tmp_path, quick, video):
    path = export(graph, tmp_path / "cam.onnx")
    result = bench_artifact(path, ("onnxruntime",), [str(video)], Pacing(rounds=2), threads=1)
    (row,) = result["rows"]
    assert (row["method"], row["runner"], row["parity"]["grade"]) == ("gradcam", "onnxruntime", "exact")
    assert row["ratios"] == {"over_forward": None, "over_zennit": None, "selection_over_original": None}
    assert result["bare"] == []
    assert result["artifact"]["sha256"] == row["artifact_sha256"]
    assert "End to end" in table(result)
    json.dumps(result, allow_nan=False)


@pytest.mark.slow
def test_a_split_artifact_has_a_forward_row(graph, tmp_path, quick):
    export(graph, tmp_path / "cam.onnx", split=True)
    result = bench_artifact(tmp_path / "cam.json", ("onnxruntime",), [], Pacing(rounds=2), threads=1)
    assert [one["name"] for one in result["bare"]] == ["forward onnxruntime fp32"]
    assert result["bare"][0]["parity"]["norm_error"] < 1e-5
    assert result["rows"][0]["ratios"]["over_forward"] > 0
    assert not result["clips"]["real"]


@pytest.mark.slow
def test_artifacts_that_cannot_be_timed(graph, tmp_path, video):
    path = export(graph, tmp_path / "cam.onnx")
    for runners, provider, message in (
        (("eager",), None, "the runner eager takes no artifact"),
        (("onnxruntime",), "NoSuchProvider", "has no NoSuchProvider"),
        (("all",), "CPUExecutionProvider", "is one runner's: name that one with --runners"),
    ):
        with pytest.raises(sr.InputError, match=message):
            bench_artifact(path, runners, [str(video)], Pacing(rounds=2), threads=1, provider=provider)
