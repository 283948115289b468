import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
import report_sample as sample

from flows.figures import quality_figures
from flows.formats import duration, visible
from flows.gallery import card_of, mark
from flows.report import POLICY, flatten, headlines, render, results_table, settings_of, write_report
from flows.summary import ArmResult, Curve, GallerySegment, RunSummary

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><script>alert(2)</script>",
    "{{ 7 * 7 }}{% raw %}{# gone #}",
    "javascript:alert(3)",
    "&lt;b&gt; &amp;amp;",
    "שלום \u202eevil\u202c مرحبا",
    "w" * 900,
    "a\0b\x07c\x1bd",
    "\ufffe\u2028",
    "$\\frac{1}{2}$ [bold red]x[/]",
    "https://example.org/track.png",
)
VOID = {"meta", "img", "br", "hr", "link", "input", "base", "area", "col", "embed", "source", "track", "wbr"}


class Page(HTMLParser):
    """Every element, attribute and text of a page, as a browser's parser would have them; checks that tags close."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)


def assert_inert(html):
    page = Page(html)
    assert not {"script", "iframe", "object", "embed", "link", "form", "base", "foreignobject", "animate"} & {
        *page.tags
    }
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
            assert re.match(r"^(#|data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$)", value), (tag, name, value[:80])
        if name == "style":
            assert "url(" not in value.replace("url(#", "")
    css = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    assert html.count("<style") == 1
    assert "url(" not in css
    assert "@import" not in css
    assert ("meta", "content", POLICY) in page.attributes
    return page


def hostile_summary(text):
    base = sample.summary()
    results = [result.model_copy(update={"arm": f"{result.arm} {text}"}) for result in base.results[::8]]
    stages = [
        stage.model_copy(update={"label": text, "kind": text, "rejected": {text: 3}, "failed": {text: 1}})
        for stage in base.stages
    ]
    experts = [
        expert.model_copy(update={"model": text, "verdicts": {text: 2}, "segment_reasons": {text: 2}, "label": text})
        for expert in base.experts
    ]
    return base.model_copy(
        update={
            "run": text,
            "config_name": text,
            "command": text,
            "metric": text,
            "metric_note": text,
            "notes": [text],
            "config": {text: {text: text}},
            "versions": {text: text},
            "results": results,
            "stages": stages,
            "experts": experts,
            "curves": [Curve(label=text, steps=[0, 1], loss=[1.0, 0.5])],
            "main_arm": f"round 2 {text}",
            "baseline_arm": f"mask-predict {text}",
        }
    )


def hostile_item(text):
    return sample.item(
        prompt=text,
        reference=text,
        draft=text + " middle " + text,
        draft_label=text,
        final=text,
        final_label=text,
        verdict=text,
        sample_id=text,
        segments=[
            GallerySegment(org=text, target=text, start=0, end=len(text)),
            GallerySegment(org="middle", target=text, start=len(text) + 1, end=len(text) + 7, reason=text),
            GallerySegment(org=text, target=text, reason=text),
        ],
    )


def test_the_report_is_one_file_that_refers_to_nothing_outside(tmp_path):
    path = write_report(sample.summary(), sample.gallery(), tmp_path / "new" / "folder")
    page = assert_inert(path.read_text(encoding="utf-8"))
    assert page.tags.count("article") == 16
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "summary.json"]
    assert path.stat().st_size < 2_000_000


@pytest.fixture(scope="module")
def ordinary():
    return assert_inert(render(hostile_summary("plain"), [hostile_item("plain")]))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_shown_and_does_nothing(text, ordinary):
    html = render(hostile_summary(text), [hostile_item(text)])
    page = assert_inert(html)
    assert page.tags == ordinary.tags
    assert page.text.count(visible(text)) == ordinary.text.count("plain")
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", html)
    console = Console(file=io.StringIO(), width=2000)
    console.print(results_table(hostile_summary(text)))
    assert text in console.file.getvalue() or not text.isprintable()


def test_ids_are_unique_and_every_internal_reference_has_its_target():
    html = render(sample.summary(), sample.gallery(3))
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert targets <= set(ids)


def test_summary_json_reads_back_as_it_was(tmp_path):
    write_report(sample.summary(), sample.gallery(1), tmp_path)
    assert RunSummary.model_validate_json((tmp_path / "summary.json").read_text()) == sample.summary()


def test_the_report_of_a_run_that_did_little_has_only_what_there_is():
    summary = sample.summary(
        results=[], experts=[], curves=[], stages=[], controls=[], notes=[], config={}, versions={}
    )
    page = assert_inert(render(summary, []))
    assert "Quality against speed" not in page.text
    assert "Lineage" not in page.text
    assert "thoughtful-otter" in page.text


def test_headlines_compare_the_last_round_with_the_baseline_at_its_best_for_no_more_forwards():
    notes = {headline.label: headline.note for headline in headlines(sample.summary())}
    assert notes["round 2, 8 tokens a step"] == "mask-predict, 6 forwards: 37.0 (×2.20)"
    assert notes["round 2, 8+4 tokens a step"] == "mask-predict, 10 forwards: 40.2 (×2.11)"
    better = [
        result.model_copy(update={"score": 60.0})
        if (result.arm, result.refining, result.nfe) == ("mask-predict", False, 6)
        else result
        for result in sample.summary().results
    ]
    notes = {headline.label: headline.note for headline in headlines(sample.summary(results=better))}
    assert notes["round 2, 8 tokens a step"].startswith("mask-predict, 6 forwards: 60.0"), (
        "refining off suits it better"
    )
    assert notes["round 2, 8+4 tokens a step"].startswith("mask-predict, 6 forwards: 60.0")


def test_one_arm_without_baseline_or_interval_is_enough():
    result = ArmResult(arm="base", refining=False, tokens_per_step=8, nfe=6, score=12.5)
    page = assert_inert(render(sample.summary(results=[result]), []))
    assert "base, 8 tokens a step" in page.text


def test_every_result_stands_in_the_page_and_in_the_terminal():
    summary = sample.summary()
    page = Page(render(summary, []))
    console = Console(file=io.StringIO(), width=200)
    console.print(results_table(summary))
    for result in summary.results:
        assert f"{result.score:.1f}" in page.text
        assert f"{result.score:.1f}" in console.file.getvalue()
    assert settings_of(summary.results) == ["1", "2", "4", "4+4", "8", "8+4"]


def test_rows_rejected_and_failed_stand_beside_their_reason():
    text = re.sub(r"\s+", " ", Page(render(sample.summary(), [])).text)
    for expected in (
        "no_candidate 213",
        "contract:equal_lengths 2",
        "timeout 3",
        "unusable 131",
        "length_mismatch 180",
    ):
        assert expected in text


SEGMENTS = st.lists(
    st.builds(
        GallerySegment,
        org=st.text(max_size=4),
        target=st.text(max_size=4),
        start=st.integers(-1, 30),
        end=st.integers(-1, 34),
        reason=st.none() | st.just("overlap"),
    ),
    max_size=8,
)


@given(st.text(max_size=30), SEGMENTS)
def test_marks_keep_every_character_of_the_draft_and_every_segment(draft, segments):
    pieces, not_placed = mark(draft, segments)
    assert "".join(piece.text for piece in pieces) == draft
    marked = [piece for piece in pieces if piece.kind != "plain"]
    assert len(marked) + len(not_placed) == len(segments)


def test_an_accepted_segment_is_struck_where_it_stands_and_a_refused_one_only_marked():
    pieces, not_placed = mark(
        "a red ring", [GallerySegment(org="red", target="blue", start=2, end=5), GallerySegment(org="x", target="y")]
    )
    assert [(piece.kind, piece.text, piece.target) for piece in pieces] == [
        ("plain", "a ", ""),
        ("corrected", "red", "blue"),
        ("plain", " ring", ""),
    ]
    assert [segment.org for segment in not_placed] == ["x"]


def test_an_image_that_does_not_decode_is_left_out_and_a_large_one_shrinks():
    assert card_of(sample.item(image=b"<svg onload=alert(1)>")).picture is None
    assert card_of(sample.item(image=None)).picture is None
    large = io.BytesIO()
    Image.effect_noise((3000, 1000), 80).save(large, "JPEG")
    picture = card_of(sample.item(image=large.getvalue())).picture
    assert max(picture.width, picture.height) == 640
    assert picture.layout == "wide photo"


def test_images_are_no_part_of_what_is_dumped():
    assert "image" not in sample.item().model_dump()


def test_figures_are_the_same_each_time_and_take_their_colours_from_the_page():
    summary = sample.summary()
    first, second = (quality_figures(summary.results, list(sample.ARMS), "score") for _ in range(2))
    assert first == second
    assert "var(--series-4)" in first[0][1]
    assert not re.search(r"#0[1-4]0[1-4]", first[0][1])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.9, "1 h 00 min"),
        (None, "–"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_nested_configuration_becomes_dotted_keys():
    assert flatten({"a": {"b": {"c": 1}, "d": "x"}, "e": {}}) == [("a.b.c", "1"), ("a.d", "x"), ("e", "{}")]
