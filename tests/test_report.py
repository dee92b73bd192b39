"""The report: one file that stands alone, escaped everywhere, written whole or not at all."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from flowknife.diagnostics import Check
from flowknife.errors import InputError, StorageError
from flowknife.report import Frame, PageImage, Section, ends_svg, write_report
from flowknife.report._figures import trust

DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"
NASTY = "<script>alert('1')</script> & \"quoted\""
VOID = {"meta", "img", "br", "link"}
SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Collects text and attributes, and checks that every element is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.words.append(data.strip())


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def full(folder: Path) -> Path:
    (folder / "dot.png").parent.mkdir(parents=True, exist_ok=True)
    (folder / "dot.png").write_bytes(DOT)
    images = [PageImage(folder / "dot.png", NASTY), PageImage(str(folder / "dot.png")), PageImage(GIF, "moving")]
    sections = [Section(NASTY, f"one {NASTY}\n\ntwo `fit <x>` & {{braces}}", images), Section("bare")]
    metrics = {NASTY: NASTY, "nll": -1.23456}
    return write_report(folder, NASTY, sections, metrics, {NASTY: NASTY}, Frame([NASTY], ["z ~ N(0, I)", "y"]))


def test_page_is_well_formed_and_escaped_everywhere(tmp_path):
    page = read(full(tmp_path))
    assert "script" not in page.tags
    assert page.words.count(NASTY) >= 5
    assert ("alt", NASTY) in page.attributes
    assert "fit <x>" in page.words and "code" in page.tags
    assert page.tags.count("p") == 2 and page.tags.count("figure") == 3


def test_page_stands_alone(tmp_path):
    path = full(tmp_path)
    page, text = read(path), path.read_text(encoding="utf-8")
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    fragments, sources = (
        [source for source in sources if source.startswith("#") == within] for within in (True, False)
    )
    places = {value for name, value in page.attributes if name == "id"}
    assert len(fragments) == 8 and {place.removeprefix("#") for place in fragments} == places
    assert [source.split(";")[0] for source in sources] == ["data:image/png", "data:image/png", "data:image/gif"]
    assert [base64.b64decode(source.split(",")[1]) for source in sources] == [DOT, DOT, GIF]
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in text and "@import" not in text and "link" not in page.tags


def test_metrics_have_names_numbers_and_units(tmp_path):
    values = {
        "nll": -1.23456,
        "bits_per_dim": 3.0,
        "posterior error (km)": 0.000123456,
        "best_layer": "third",
        "parameters": 1234567,
        "mmd": float("nan"),
    }
    text = write_report(tmp_path, "t", [], values, item="row").read_text(encoding="utf-8")
    cells = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td>', text)
    assert cells == [
        ("Negative log-likelihood, held out", "−1.235", "nats per row"),
        ("Bits per dimension, held out", "3", "bits/dim"),
        ("Posterior error", "0.0001235", "km"),
        ("Best layer", "third", ""),
        ("Trained parameters", "1,234,567", "numbers"),
        ("Maximum mean discrepancy", "not finite", "0 is perfect"),
    ]


def test_an_empty_report_is_a_page(tmp_path):
    page = read(write_report(tmp_path / "deep" / "run", "Nothing yet", []))
    assert page.words == ["Nothing yet", "Nothing yet"]
    assert not {"table", "dl", "svg", "figure"} & set(page.tags)


def test_a_image_is_as_wide_as_its_resolution_says(tmp_path):
    from matplotlib.figure import Figure

    for dpi in (96, 192):
        Figure(figsize=(3, 1)).savefig(tmp_path / f"{dpi}.png", dpi=dpi)
        page = read(write_report(tmp_path, "t", [Section("s", "", [PageImage(tmp_path / f"{dpi}.png")])]))
        assert ("width", "288") in page.attributes
    page = read(write_report(tmp_path, "t", [Section("s", "", [PageImage(DOT)])]))
    assert "width" not in dict(page.attributes)


def test_a_failed_report_leaves_the_old_one_and_no_draft(tmp_path, monkeypatch):
    path = write_report(tmp_path, "old", [])
    before = path.read_bytes()
    with pytest.raises(InputError):
        write_report(tmp_path, "new", [Section("s", "", [PageImage(tmp_path / "missing.png")])])

    def full_disk(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        write_report(tmp_path, "new", [])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_new_report_replaces_the_old_one(tmp_path):
    write_report(tmp_path, "old", [])
    assert "new" in write_report(tmp_path, "new", []).read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("source", [b"not an image", "missing.png", b""])
def test_a_wrong_image_is_told_in_one_line(tmp_path, source):
    with pytest.raises(InputError) as caught:
        write_report(tmp_path, "t", [Section("s", "", [PageImage(source)])])
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not write"):
        write_report(tmp_path / "file", "t", [])


@pytest.mark.parametrize("counts", [(1, 1), (1, 5), (4, 2)])
def test_ends_are_drawn_inside_the_frame_without_overlap(counts):
    left, right = ([f"{side}{i} N(0, {i} < 9)" for i in range(n)] for side, n in zip("ab", counts, strict=True))
    svg = ElementTree.fromstring(ends_svg(left, right))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    boxes = [[float(r.attrib[k]) for k in ("x", "y", "width", "height")] for r in svg.iter(f"{SVG}rect")]
    assert len(boxes) == sum(counts) + 1
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    for i, (x, y, w, h) in enumerate(boxes):
        for u, v, s, t in boxes[i + 1 :]:
            assert x + w <= u or u + s <= x or y + h <= v or v + t <= y
    words = ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]
    assert [word for word in words if word[0] in "ab"] == [block.replace(" ", "", 1) for block in left + right]
    assert {"encode", "decode"} < set(words)


def test_an_end_without_a_block_is_an_error():
    with pytest.raises(InputError, match="at least one"):
        ends_svg([], ["z"])


def test_a_page_of_a_run_shows_date_data_settings_versions_and_units(tmp_path):
    from datetime import UTC, datetime
    from types import SimpleNamespace

    import flowknife as fk
    from flowknife._record import DataRecord, Record, Stopped, TrainingRecord
    from flowknife.report import write_page

    identity = fk.bijections.Permute([1, 0])
    model = fk.INN([fk.Block("x", 2)], [fk.Block("z", 2)], identity)
    config = fk.DensityConfig.model_validate({"width": 32, "train": {"steps": 5}})
    used = config.completed(smoothing=0.1)
    record = Record[fk.DensityConfig](
        application="density",
        config=config,
        used=used,
        data=DataRecord(kind="rows", rows=7, source="points.csv"),
        training=TrainingRecord(steps=5, seconds=1.0, stopped=Stopped.BUDGET),
        created=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        versions={"flowknife": "1.2.3"},
    )
    result = SimpleNamespace(
        application="density",
        title="density",
        record=record,
        config=config,
        used=used,
        metrics={"nll": 1.5},
        model=model,
        flagging=SimpleNamespace(note=""),
    )
    folder = tmp_path / "points"
    page = read(write_page(result, folder, [Section("Checks", "", table=[("Check", "Value"), ("a < b", "1")])]))
    text = "\n".join(page.words)
    assert page.words[:2] == ["points: density"] * 2  # of the tab and of the page
    for part in ("2026-01-02 03:04 UTC", "points.csv", "flowknife 1.2.3", "nats per row", "a < b"):
        assert part in text
    cells = [page.words[page.words.index(name) :][:3] for name in ("width", "train.steps")]
    assert cells == [["width", "32", "32"], ["train.steps", "5", "5"]]
    assert page.words[page.words.index("smoothing") + 1] == "0.1"  # chosen by the fit


def test_the_section_of_checks_says_what_to_do_about_those_that_failed():
    checks = [Check("good", 0.0, 1.0, "nothing"), Check("bad", 3.0, 1.0, "try more rows")]
    section = trust(SimpleNamespace(flagging=SimpleNamespace(rows=9, note=""), check=lambda: checks))
    assert "1 of 2 checks failed" in section.text and "bad: try more rows." in section.text
    assert "nothing" not in section.text and section.table[1][0] == "bad"
