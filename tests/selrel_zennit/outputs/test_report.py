"""The report: well-formed, self-contained, escaped, and complete."""

from html.parser import HTMLParser

import numpy as np

from selrel_zennit.outputs import report
from selrel_zennit.outputs.report import report_html

SUMMARY = {
    "model": "c3d",
    "weights": {"file": "c3d.safetensors", "sha256": "ab" * 32},
    "method": "dtd",
    "preset": "default",
    "n_sigma": 4.0,
    "target": 1,
    "target_name": "CricketShot",
    "top5": [["CricketShot", 0.871], ["BaseballPitch", 0.064]],
    "clips": [
        {
            "start": 0,
            "motion_area": 0.015,
            "motion_mass": 0.1,
            "relevance_sum": 1.0,
            "seconds": {"read": 0.1, "select": 0.002},
        },
        {"start": 16, "motion_area": None, "motion_mass": None, "relevance_sum": 0.0, "seconds": {"read": 0.1}},
    ],
    "runner": "eager",
    "device": "cpu",
    "versions": {"torch": "2.15", "zennit": "0.5.1"},
    "notes": ["The video was loop padded."],
    "warnings": ["Weights are random."],
}
MEDIA = {"overlay": b"\x00mp4", "strip": b"\x89PNG"}
VOID = {"meta", "img", "link", "br", "hr", "input", "source"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def test_report_is_well_formed_and_says_it_all():
    page = Page(report_html(SUMMARY, MEDIA))
    assert page.open == []
    text = " ".join(" ".join(page.text).split())
    expected = [
        "CricketShot",
        "87.1 %",
        "BaseballPitch",
        "6.4 %",
        "10.0 %",
        "1.5 %",
        "c3d.safetensors",
        "ab" * 32,
        "dtd",
        "default",
    ]
    expected += [
        "zennit 0.5.1",
        "loop padded",
        "Weights are random",
        "0.002",
        "n/a",
        "relative to the clip",
        "not an absolute measurement",
    ]
    for words in expected:
        assert words in text, words


def test_report_is_self_contained():
    html = report_html(SUMMARY, MEDIA)
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "poster", "srcset")]
    assert sources == ["data:video/mp4;base64,AG1wNA==", "data:image/png;base64,iVBORw=="]


def test_report_is_accessible():
    html = report_html(SUMMARY, MEDIA)
    page = Page(html)
    attributes = {(tag, name): value for tag, name, value in page.attributes}
    assert attributes["html", "lang"] == "en"
    assert "title" in page.tags
    assert "CricketShot" in attributes["img", "alt"]
    assert attributes["video", "aria-label"]
    assert {"controls", "autoplay", "loop", "muted", "playsinline"} <= {
        n for tag, n, _ in page.attributes if tag == "video"
    }
    assert attributes["meta", "name"] == "viewport"
    assert "prefers-color-scheme: dark" in html


def test_report_escapes_everything():
    evil = "<script>alert('x')</script>\"onload=\"y & ${title} $target"

    def spoil(value):
        if isinstance(value, dict):
            return {(evil if key in ("torch", "read", "file") else key): spoil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return evil if isinstance(value, str) else value

    page = Page(report_html({**spoil(SUMMARY), evil: evil}, MEDIA))
    assert page.open == []
    assert "script" not in page.tags
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "".join(page.text).count(evil) > 10


def test_report_without_a_target_among_the_top_or_optional_parts():
    summary = {"target_name": "Kayaking", "top5": [["CricketShot", 0.9]], "clips": [{"start": 0}]}
    text = " ".join(Page(report_html(summary, MEDIA)).text)
    assert "not among the top classes" in text
    assert "Warnings" not in text


def test_report_says_how_fast_the_film_runs_and_how_likely_the_target_is():
    summary = {**SUMMARY, "target_name": "Kayaking", "target_probability": 0.012}
    text = " ".join(Page(report_html({**summary, "overlay": {"frame_rate": 8, "speed": 0.25}}, MEDIA)).text)
    assert "0.25 of the video's own speed" in text
    assert "probability 1.2 %" in text
    assert "own speed" not in report_html({**summary, "overlay": {"speed": 1.0}}, MEDIA)


def test_calibrated_report_has_its_own_caveat():
    html = report_html({**SUMMARY, "preset": "calibrated"}, MEDIA)
    assert "stand still" in html
    assert "n·σ is relative" not in html


def test_a_report_written_in_pieces_is_the_page_and_a_long_overlay_stays_beside_it(tmp_path, monkeypatch):
    overlay = np.random.default_rng(0).bytes((3 << 18) + 5)
    (tmp_path / "overlay.mp4").write_bytes(overlay)
    media = {**MEDIA, "overlay": overlay}
    report.write_report(tmp_path / "report.html", SUMMARY, MEDIA, tmp_path / "overlay.mp4")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page == report_html(SUMMARY, media)
    monkeypatch.setattr(report, "_LARGEST_EMBEDDED", len(overlay) - 1)
    report.write_report(tmp_path / "report.html", SUMMARY, MEDIA, tmp_path / "overlay.mp4")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<video controls autoplay loop muted playsinline" in page
    assert 'src="overlay.mp4"' in page
    assert "video/mp4" not in page
