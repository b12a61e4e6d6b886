"""The report of a run: its structure, its bytes, and what a browser makes of it."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from pytorchdia import reduce
from pytorchdia.run.frames_table import read_frames
from pytorchdia.run.lightcurves import LightCurves
from pytorchdia.run.report.drawings import curve_drawing
from pytorchdia.run.report.numbers import Curve, photon_limit
from pytorchdia.run.report.page import Content, VariableCard, page_of
from pytorchdia.run.report.pictures import cut, shrunk
from pytorchdia.run.settings import Settings
from pytorchdia.threads import one_thread

from .small_season import CONFIG, VARIABLE, epochs, write_frame, write_season

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NASTY = "a<b>&'\"name"


class Page(HTMLParser):
    """Tags with their attributes, the words of each table row, and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in ("meta", "link", "img", "input", "path", "use", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag):
        if tag in ("path", "use"):
            return
        assert self.open.pop() == tag, f"{tag} closes another element"

    def handle_data(self, data):
        if "td" in self.open:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small season with a name that must be escaped and a frame that is no image."""
    folder = tmp_path_factory.mktemp("report") / "season"
    write_season(folder, 5, CONFIG)
    extra = write_frame(folder, epochs(6)[5])
    extra.rename(folder / f"{NASTY}.fits")
    (folder / "broken.fits").write_text("no image")
    with one_thread():
        reduce(folder / "config.toml")
    return folder / "run"


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text())


def test_nothing_comes_from_outside(run: Path, page: Page) -> None:
    text = (run / "report.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    for tag, attributes in page.tags:
        assert tag != "base"
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"url\((?!#)", text)


def test_ids_are_unique_and_links_inside_lead_somewhere(page: Page) -> None:
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")}
    assert targets <= set(ids)


def test_images_can_be_decoded_and_say_what_they_show(page: Page) -> None:
    images = page.all("img")
    done = 6
    assert len(images) >= 1 + done + 3
    for image in images:
        assert len(image["alt"]) > 10
        kind, data = image["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        pixels = imread(io.BytesIO(base64.b64decode(data)), format="png")
        assert min(pixels.shape[:2]) >= 7
        assert np.ptp(pixels) > 0
    assert all(a.get("aria-label") for a in page.all("svg"))


def test_rows_are_the_frames_with_names_escaped(run: Path, page: Page) -> None:
    table = read_frames(run)
    shown = {row[0]: row for row in page.rows if row and row[0] in set(table["name"])}
    assert len(table) == 7
    assert set(shown) == set(map(str, table["name"]))
    assert NASTY in shown
    assert "<b>" not in (run / "report.html").read_text()
    for row in table:
        cells = shown[str(row["name"])]
        assert cells[1] == row["status"]
        assert cells[2] == ("" if np.ma.is_masked(row["reason"]) else row["reason"])
    assert shown["broken"][1] == "failed"


def test_the_variable_is_the_first_card(page: Page) -> None:
    (words,) = [a for t, a in page.tags if a.get("id") == "variable1"]
    assert words["class"] == "variable"
    (mark,) = [a for a in page.all("a") if a.get("href") == "#variable1"]
    left = float(re.search(r"left:([\d.]+)%", mark["style"])[1])
    bottom = float(re.search(r"bottom:([\d.]+)%", mark["style"])[1])
    assert abs(left / 100 * 100 - VARIABLE[0] - 0.5) < 5.0  # the grid is that of another frame
    assert abs(bottom / 100 * 96 - VARIABLE[1] - 0.5) < 5.0


LISTED = ("candidate", "kind", "star", "x", "y", "ra", "dec", "significance", "n_epochs",
          "best_frame", "flux", "error", "in_stack")  # fmt: skip


def candidates_shown(candidates: list[dict[str, object]]) -> list[list[str]]:
    """Heads and rows of the list of candidates on a page of these alone."""
    content = Content(
        title="a run", rows=(), stars=0, fwhm=3.0, settings=Settings(), findings=(),
        candidates=tuple(candidates), troubles=(), reference="data:,", reference_shape=(96, 100),
        season="", scatter=None, photon_limit=False, kernels=(),
        variables=(VariableCard(1, candidates[0], None, None),),
    )  # fmt: skip
    table = re.search(r"List of candidates.*?</table>", page_of(content), re.S)[0]
    return [re.findall(r"<t[hd][^>]*>([^<]*)</t", row) for row in re.findall(r"<tr.*?</tr>", table)]


def test_the_list_of_candidates_has_their_numbers_and_places() -> None:
    names = dict.fromkeys(LISTED)
    one = names | {"candidate": 1, "kind": "variable star", "star": 17, "x": 3.0, "y": 4.0}
    one |= {"significance": 9.0, "n_epochs": 2, "flux": 1.0, "error": 0.1}
    two = one | {"candidate": 2, "ra": 273.87123456, "dec": -25.28512344}
    heads, first = candidates_shown([one])
    assert heads[:5] == ["number", "kind", "star", "x", "y"]
    assert first[:5] == ["1", "variable star", "17", "3.00", "4.00"]
    assert "RA [deg]" not in heads
    heads, first, second = candidates_shown([one, two])
    assert heads[5:7] == ["RA [deg]", "Dec [deg]"]
    assert first[5:7] == ["", ""]
    assert second[:1] + second[5:7] == ["2", "273.871235", "-25.285123"]


def test_a_candidate_is_listed_under_the_number_of_its_light_curve(run: Path) -> None:
    text = (run / "report.html").read_text()
    table = re.search(r"List of candidates.*?</table>", text, re.S)[0]
    rows = re.findall(r"<tr><td[^>]*>([^<]*)</td>", table)
    assert rows == [str(n) for n in LightCurves(run).candidates["candidate"][:60]]


def test_the_same_run_gives_the_same_bytes_and_a_lost_page_is_made_again(run: Path) -> None:
    path = run / "report.html"
    before = path.read_bytes()
    summary = reduce(run.parent / "config.toml", only="report")
    assert {step: n for step, _, n in summary.planned}["report"] == 0
    path.unlink()
    summary = reduce(run.parent / "config.toml", only="report")
    assert {step: n for step, _, n in summary.planned}["report"] == 1
    assert path.read_bytes() == before
    assert not list(run.glob(".*part*"))


def test_a_photon_limit_is_what_a_gaussian_psf_allows() -> None:
    flux, one = np.array([1e3, 1e5]), {"gain": 2.0, "fwhm": 3.0, "sky_scatter": 5.0, "scale": 0.8}
    y, x = np.mgrid[-15:16, -15:16]
    s = 3.0 / 2.3548
    psf = np.exp(-0.5 * (x**2 + y**2) / s**2) / (2 * np.pi * s**2)
    limit = photon_limit(flux, [one])
    for f, found in zip(flux, limit, strict=True):
        # Sky alone by the sum over pixels; the star's own photons as if all were counted.
        sky = 5.0**2 / (psf**2).sum()
        expected = np.sqrt(0.8 * f / 2.0 + sky) / (0.8 * f) * 2.5 / np.log(10)
        assert found == pytest.approx(expected, rel=1e-3)
    assert photon_limit(flux, [{**one, "gain": None}]) is None


def test_large_images_shrink_to_means_and_stamps_keep_their_place() -> None:
    image = np.arange(70.0 * 50).reshape(70, 50)
    image[0, :] = np.nan
    small = shrunk(image, 10)
    assert small.shape == (10, 8)
    assert small[1, 1] == pytest.approx(image[7:14, 7:14].mean())
    assert small[0, 0] == pytest.approx(image[1:7, :7].mean())
    stamp = cut(image, 49.2, 68.9, 3)
    assert stamp.shape == (7, 7)
    assert stamp[3, 3] == image[69, 49]
    assert np.isnan(stamp[4:]).all()
    assert np.isnan(cut(image, 500.0, 500.0, 3)).all()


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    return subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to open the page in")
def test_a_browser_opens_it_blinks_it_and_sorts_it(run: Path, tmp_path: Path) -> None:
    script = """<script>
    document.querySelector("button.blink").click();
    const log = [];
    const look = () => log.push(document.querySelector(".triplet figure.now").dataset.panel);
    look();
    const timer = setInterval(look, 700);
    const heads = document.querySelectorAll("#frames-table th button");
    heads[6].click(); heads[6].click();
    setTimeout(() => {
      clearInterval(timer);
      const t = document.getElementById("frames-table");
      const out = document.createElement("output");
      out.id = "seen";
      out.textContent = JSON.stringify({
        panels: log, pressed: document.querySelector("button.blink").ariaPressed,
        first: t.tBodies[0].rows[0].cells[0].textContent,
        last: t.tBodies[0].rows[6].cells[0].textContent,
        broken: Array.from(document.images).filter((i) => i.naturalWidth === 0).length,
        wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      });
      document.body.appendChild(out);
    }, 2400);
    </script></body>"""
    text = (run / "report.html").read_text()
    copy = tmp_path / "page.html"
    copy.write_text(text.replace("</body>", script))
    shown = browse(copy, "--virtual-time-budget=6000", "--window-size=390,844", "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    found = re.search(r'<output id="seen">(.*?)</output>', shown.stdout)
    assert found, shown.stderr[-500:]
    seen = json.loads(html.unescape(found[1]))
    assert set(seen["panels"]) == {"reference", "target", "difference"}
    assert seen["pressed"] == "true"
    table = read_frames(run)
    widths = {str(r["name"]): float(r["fwhm"]) for r in table if r["status"] != "failed"}
    assert seen["first"] == max(widths, key=lambda name: widths[name])
    assert seen["last"] == "broken"
    assert seen["broken"] == 0
    assert seen["wide"] <= 0


@pytest.mark.parametrize(("clean", "said"), [(8, "flagged, 2 beyond"), (3, "flagged")])
def test_flagged_epochs_do_not_stretch_a_light_curve_that_is_mostly_clean(
    clean: int, said: str
) -> None:
    flux = np.array([1.0, 3.0, 2.0, 5.0, 4.0, 2.0, 1.0, 3.0, 900.0, -700.0, 2.0])
    good = np.arange(11) < clean
    svg = curve_drawing(Curve(np.arange(11.0), flux, np.ones(11), good), "curve", "A curve")
    words = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert said in words
    numbers = [float(word) for word in words if re.fullmatch(r"[\d.]+", word)]
    assert (max(numbers) < 20) == (clean == 8)
