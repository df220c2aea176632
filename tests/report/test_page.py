"""The page: one file, everything escaped, and in a real browser it sorts, filters and says nothing on the console."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import convsurgeon as cs
from convsurgeon.planning.inspection import energy_curves
from convsurgeon.planning.plan import Change, Skip
from convsurgeon.report import charts
from convsurgeon.report.bundle import Recommended
from convsurgeon.report.page import page
from tests import nets
from tests.report.bundles import make_bundle, timing

X = torch.linspace(-1, 1, 2 * 3 * 12 * 12).reshape(2, 3, 12, 12)
HOSTILE = [
    "<script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=2">',
    "</script><script>window.pwned=3</script>",
    "{{ 7*7 }}{% raw %}",
    "';window.pwned=4;//",
    "</style><svg onload=window.pwned=5>",
    "löwe 🦁 " + "long" * 40,
]


def _renamed(report: cs.Report, names: list[str]) -> cs.Report:
    """The report with other names for its layers, repeated as often as needed; every third one is left alone."""
    steps: list[Change | Skip] = []
    for index, name in enumerate(names):
        step = report.steps[index % len(report.steps)]
        step = dataclasses.replace(step, site=dataclasses.replace(step.site, name=name, macs=1000 * (index * 7 % 5)))
        steps.append(Skip(step.site, f"reason {name}") if index % 3 == 2 else step)
    tensors = tuple((name, (1, 2), 2, "both") for name in names)
    return dataclasses.replace(report, steps=tuple(steps), tensors=tensors, example=names[0])


@pytest.fixture(scope="module")
def report() -> cs.Report:
    torch.manual_seed(0)
    return cs.convert(
        nets.Shared().eval(), X, policy=cs.select.everything(), forms=[cs.DepthwiseSeparable(rank=2)], calibration=False
    ).report


class _Tags(HTMLParser):
    """Every tag with its attributes, and the text between."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _parsed(text: str) -> _Tags:
    parser = _Tags()
    parser.feed(text)
    return parser


def _hostile_page(report: cs.Report) -> str:
    bad = _renamed(report, HOSTILE)
    curves = {name: {"separable": (0.5, 0.9, 1.0), "blueprint": (0.4, 1.0)} for name in HOSTILE}
    timings = [timing(threads, evil=HOSTILE[2], model=3.0, model_int8=0.7) for threads in (2, 1)]
    blocking = [f"{name} (Conv)" for name in (HOSTILE * 4)[:4]]
    return page(HOSTILE[0], bad, curves, make_bundle(*timings, names=HOSTILE, blocking=blocking, dynamic=[HOSTILE[2]]))


def test_the_users_metric_is_on_the_axis_and_the_file_to_ship_is_marked() -> None:
    best = Recommended("model-int8.onnx", 3.0, (2.9, 3.1), None, 0.1, 0.2, 1, False, "all")
    made = make_bundle(timing(model=2.0, model_int8=3.0), recommended=best)
    made = dataclasses.replace(made, values={"original.onnx": 92.5, "model.onnx": 92.7, "model-int8.onnx": 92.4})
    drawn = charts.draw_tradeoff(made)
    heights = {point["name"]: point["y"] for point in drawn["points"]}
    assert heights["model.onnx"] < heights["original.onnx"] < heights["model-int8.onnx"]  # from the top
    assert [point["name"] for point in drawn["points"] if "best" in point["kind"]] == ["model-int8.onnx"]
    assert [text for _, text in drawn["yticks"]] == ["92.7", "92.4"]
    assert all(0 <= place <= 100 for place in heights.values())


def test_hostile_names_are_text(report: cs.Report) -> None:
    text = _hostile_page(report)
    tags = _parsed(text)
    assert [tag for tag, _ in tags.found if tag in ("img", "iframe", "object", "link", "base", "form")] == []
    assert [tag for tag, _ in tags.found].count("script") == 1
    assert not [name for _, attributes in tags.found for name in attributes if name.startswith("on")]
    assert not [value for _, a in tags.found for name, value in a.items() if name in ("src", "href")]
    for name in HOSTILE:
        assert name in tags.text
    assert "49" not in re.findall(r"<th scope=\"row\"[^>]*>([^<]*)", text)


def test_one_file_and_a_policy_that_allows_nothing_else(report: cs.Report) -> None:
    text = page("Net", report)
    assert not re.findall(r"https?://|@import|url\(", text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_a_report_without_files_is_a_page(report: cs.Report) -> None:
    text = page("Net", report)
    assert "Nothing was timed" in text
    assert "3 of 3 convs rewritten" in text
    assert 'id="latency"' not in text
    assert 'id="skips"' not in text
    assert 'id="tradeoff"' not in text


def test_energy_curves_rise_to_one(report: cs.Report) -> None:
    torch.manual_seed(0)
    curves = energy_curves(nets.Shared().eval(), report.steps)
    assert set(curves) == {step.name for step in report.steps}
    for step in report.steps:
        for kept in curves[step.name].values():
            assert list(kept) == sorted(kept)
            assert len(kept) == 9 or kept[-1] == pytest.approx(1)
        assert isinstance(step, Change)
        assert curves[step.name]["separable"][step.rank - 1] == pytest.approx(1 - (step.lost or 0))
    assert energy_curves(nets.Shared().to("meta"), report.steps) == {}


def test_positions_lie_in_the_picture() -> None:
    for scale in (1e-3, 1.0, 250.0):
        drawn = charts.draw_tradeoff(make_bundle(timing(base_ms=2.0 * scale, model=3.0, model_int8=0.7)))
        places = [point[axis] for point in drawn["points"] for axis in "xy"]
        assert all(0 <= place <= 100 for place in [*places, *(at for at, _ in drawn["xticks"])])
        assert 2 <= len(drawn["xticks"]) <= 7
    for low, high in ((0.01, 1.1), (0.9, 1.1), (1.5, 90.0)):
        first = timing(model=1.0, model_int8=0.7)
        rows = (first.rows[0], dataclasses.replace(first.rows[1], interval=(low, high)), first.rows[2])
        speeds = charts.draw_speeds([dataclasses.replace(first, rows=rows)])
        assert all(0 <= at <= 100 for at, _ in speeds["ticks"])
        assert len(speeds["ticks"]) >= 2
        for row in speeds["settings"][0]["rows"]:
            assert row["left"] >= 0
            assert row["left"] + row["width"] <= 100


# In a browser


def _browser() -> Any:
    """A headless Chromium, or a skip."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs chromium and chromedriver (Debian: chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options, service = webdriver.ChromeOptions(), importlib.import_module("selenium.webdriver.chrome.service")
    options.binary_location = binary
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=service.Service(driver))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    made = _browser()
    yield made
    made.quit()


@pytest.fixture
def opened(browser: Any, report: cs.Report, tmp_path: Path) -> Any:
    """A page of 40 layers."""
    names = [f"layer{index // 10}.conv{index % 10 + 5}" for index in range(40)]
    curves = {name: {"separable": (0.5, 0.9, 1.0)} for name in names}
    (tmp_path / "report.html").write_text(
        page("Net", _renamed(report, names), curves, make_bundle(timing(model=3.0, model_int8=0.7), names=names))
    )
    browser.get(f"file://{tmp_path / 'report.html'}")
    return browser


def _column(browser: Any, index: int) -> list[str]:
    script = "return [...document.querySelectorAll('#layer-table tbody tr')].filter(r => !r.hidden)"
    return list(browser.execute_script(f"{script}.map(r => r.cells[{index}].dataset.v ?? '')"))


def _click(browser: Any, name: str) -> None:
    script = "[...document.querySelectorAll('th button')].find(b => b.textContent === arguments[0]).click()"
    browser.execute_script(script, name)


def test_nothing_on_the_console_and_nothing_from_the_network(opened: Any) -> None:
    assert opened.get_log("browser") == []
    wanted = [entry["message"] for entry in opened.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert all('"url":"file://' in message for message in wanted)


def test_columns_sort_both_ways(opened: Any) -> None:
    _click(opened, "MACs")
    macs = [float(value) for value in _column(opened, 6)]
    assert macs == sorted(macs, reverse=True)
    assert len(set(macs)) == 5
    _click(opened, "MACs")
    assert [float(value) for value in _column(opened, 6)] == sorted(macs)
    assert opened.execute_script("return document.querySelectorAll('[aria-sort]').length") == 1
    _click(opened, "Weights lost")  # what has no value stays at the end, both ways
    for _ in range(2):
        lost = _column(opened, 3)
        assert lost[-13:] == [""] * 13
        assert "" not in lost[:-13]
        _click(opened, "Weights lost")
    _click(opened, "Layer")
    names = _column(opened, 0)
    assert names[:6] == [f"layer0.conv{index}" for index in range(5, 11)]
    assert names.index("layer0.conv9") < names.index("layer0.conv10") < names.index("layer1.conv5")


def test_rows_are_filtered_by_words_and_kind(opened: Any) -> None:
    script = "const f = document.getElementById(arguments[0]); f.value = arguments[1];"
    script += "f.dispatchEvent(new Event(f.id === 'filter' ? 'input' : 'change'))"
    opened.execute_script(script, "filter", "LAYER2 conv1")
    assert _column(opened, 0) == [f"layer2.conv{index}" for index in range(10, 15)]
    assert opened.execute_script("return document.getElementById('count').textContent") == "5 of 40 layers"
    opened.execute_script(script, "filter", "")
    opened.execute_script(script, "which", "skipped")
    assert len(_column(opened, 0)) == 13
    opened.execute_script(script, "filter", "no such layer")
    assert _column(opened, 0) == []
    assert opened.execute_script("return document.getElementById('empty').hidden") is False
    opened.execute_script(script, "filter", "")
    opened.execute_script(script, "which", "")
    opened.execute_script(script, "order", "6,-1")  # the list that a phone shows
    macs = [float(value) for value in _column(opened, 6)]
    assert macs == sorted(macs, reverse=True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_the_screen_and_can_be_read(opened: Any, width: int, dark: bool) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 700}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width
        sizes, contrast = opened.execute_script(_READ)
        assert min(sizes) >= 12
        assert contrast >= 4.5, f"contrast {contrast}"
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


_READ = """
const seen = [...document.querySelectorAll('p, td, th, li, span, b, small, dt, code, summary, em, strong, button')]
  .filter(e => e.offsetParent && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = e => { for (; e; e = e.parentElement) {
  const c = getComputedStyle(e).backgroundColor;
  if (/^rgb\\(/.test(c)) return rgb(c); } return [255, 255, 255]; };
const ratio = e => { const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05); };
return [seen.map(e => parseFloat(getComputedStyle(e).fontSize)), Math.min(...seen.map(ratio))];
"""


def test_hostile_names_do_nothing_in_a_browser(browser: Any, report: cs.Report, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(_hostile_page(report), encoding="utf-8")
    browser.get(f"file://{tmp_path / 'report.html'}")
    assert browser.execute_script("return window.pwned ?? null") is None
    assert _column(browser, 0) == HOSTILE
    assert browser.execute_script("return document.title") == f"{HOSTILE[0]}: convsurgeon report"
    _click(browser, "Layer")
    assert sorted(_column(browser, 0)) == sorted(HOSTILE)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 1280
    assert browser.get_log("browser") == []


def test_it_prints_with_everything_open_and_on_the_page(opened: Any) -> None:
    metrics = {"width": 700, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # A4 less its margins
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 700
        assert opened.execute_script("return getComputedStyle(document.querySelector('.tools')).display") == "none"
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    pdf = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF")
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert opened.execute_script("return [...document.querySelectorAll('details')].every(d => d.open)")
