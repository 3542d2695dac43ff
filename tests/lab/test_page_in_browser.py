"""The page in headless Chromium: quiet, without requests, readable on any screen and in the dark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twoscale._lab.page import write_report
from twoscale._lab.records import LabResults

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: apt install chromium chromium-driver)"
)

# Every text with its colour, and the first opaque colour behind it.
TEXTS = """
const seen = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
  if (!text || element.closest('style')) continue;
  const style = getComputedStyle(element);
  let behind = element;
  while (behind && /rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(behind).backgroundColor)) {
    behind = behind.parentElement;
  }
  seen.push([text, element instanceof SVGElement ? style.fill : style.color,
             behind ? getComputedStyle(behind).backgroundColor : 'none']);
}
return seen;
"""
# Boxes that stick out of the window, except inside those that scroll by themselves.
OVERFLOWING = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.scroll') || e.matches('.scroll'))
  .filter(e => !e.closest('.skip'))
  .filter(e => { const box = e.getBoundingClientRect(); return box.right > width + 1 || box.left < -1; })
  .map(e => e.tagName + ' ' + e.textContent.slice(0, 40));
"""
# The height of chart text on the screen, in CSS pixels.
CHART_TEXT = """
return [...document.querySelectorAll('svg.plot')].map(svg =>
  parseFloat(getComputedStyle(svg.querySelector('text:not(.title)')).fontSize) * svg.getScreenCTM().a);
"""


@pytest.fixture(scope="module")
def page(results: LabResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(results, tmp_path_factory.mktemp("report"))[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get("about:blank")  # leaves the new tab page, which has a console and requests of its own
    yield driver
    driver.quit()


def _open(browser: Any, page: Path, width: int, scheme: str) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    browser.get(page.as_uri())


def _requests(browser: Any, page: Path) -> list[str]:
    """Return what the page asked for since the last call; the browser's own pages make requests too."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return [one["request"]["url"] for one in sent if one["documentURL"] == page.as_uri()]


def _luminance(colour: str) -> float:
    channels = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2.2."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_no_errors_and_no_requests(browser: Any, page: Path) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    _open(browser, page, 1280, "light")
    assert browser.get_log("browser") == []
    assert [url for url in _requests(browser, page) if not url.startswith("data:")] == [page.as_uri()]
    assert browser.title == "twoscale lab: cifar10"


def test_the_request_check_sees_a_request(browser: Any, page: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted.html"
    planted.write_text(page.read_text().replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'))
    browser.get_log("performance")
    _open(browser, planted, 1280, "light")
    assert "http://127.0.0.1:9/x.png" in _requests(browser, planted)
    browser.get_log("browser")


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Any, page: Path, width: int) -> None:
    _open(browser, page, width, "light")
    assert browser.execute_script("return document.documentElement.clientWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(OVERFLOWING) == []


def test_wide_tables_scroll_in_their_own_box(browser: Any, page: Path) -> None:
    _open(browser, page, 360, "light")
    wide = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert browser.execute_script(wide) > 5


@pytest.mark.parametrize("width", [360, 1280])
def test_chart_text_stays_legible(browser: Any, page: Path, width: int) -> None:
    _open(browser, page, width, "light")
    sizes = browser.execute_script(CHART_TEXT)
    assert len(sizes) > 40
    assert min(sizes) >= 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(browser: Any, page: Path, scheme: str) -> None:
    _open(browser, page, 1280, scheme)
    texts = browser.execute_script(TEXTS)
    assert len(texts) > 1000
    backgrounds = {behind for _, _, behind in texts}
    assert backgrounds == {"rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 28)"}
    assert [text for text, colour, behind in texts if _contrast(colour, behind) < 4.5] == []


def test_print_is_light_even_in_the_dark(browser: Any, page: Path) -> None:
    _open(browser, page, 1280, "dark")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert {behind for _, _, behind in browser.execute_script(TEXTS)} == {"rgb(255, 255, 255)"}


def test_charts_follow_the_colour_scheme(browser: Any, page: Path) -> None:
    fill = "return getComputedStyle(document.querySelector('.area')).fill"
    fills = []
    for scheme in ("light", "dark"):
        _open(browser, page, 1280, scheme)
        fills.append(browser.execute_script(fill))
    assert len(set(fills)) == 2


def test_a_chart_s_file_follows_it_too(browser: Any, page: Path) -> None:
    fills = []
    for scheme in ("light", "dark"):
        _open(browser, page.parent / "plots" / "net-weight-conv1.svg", 400, scheme)
        fills.append(browser.execute_script("return getComputedStyle(document.querySelector('.area')).fill"))
    assert len(set(fills)) == 2


def test_every_table_can_be_reached_by_keyboard(browser: Any, page: Path) -> None:
    _open(browser, page, 360, "light")
    unreachable = (
        "return [...document.querySelectorAll('table')].filter(t => t.closest('.scroll').tabIndex !== 0).length"
    )
    assert browser.execute_script(unreachable) == 0
    unnamed = "return [...document.querySelectorAll('.scroll')].filter(e => !e.getAttribute('aria-label')).length"
    assert browser.execute_script(unnamed) == 0


# The clip range of the weights.

EXPLORER = """
const figure = document.querySelectorAll('.explorer')[arguments[0]];
const box = figure.querySelector('svg').getBoundingClientRect();
const x = side => figure.querySelector('.handle.' + side).getBoundingClientRect().x;
return {shown: [...figure.querySelectorAll('dd')].map(e => e.textContent), stop: figure.querySelector('input').value,
        below: x('below'), above: x('above'), box: [box.left, box.top, box.width, box.height],
        shade: figure.querySelector('.shade.above').getBoundingClientRect().width};
"""


def _clip_texts(results: LabResults, stop: int) -> list[str]:
    """Return what the page should show of a stop of the first explorer, as far as digits do not matter."""
    curve = results.networks[0].clips[0]
    point = curve.points[stop]
    return [
        f"({100 * point.clip / curve.points[0].clip:.0f} %)",
        f"{100 * point.clipped:.2f} %",
        f"{point.sqnr_db:.1f} dB",
        f"{100 * (point.top1 or 0):.2f} %",
    ]


def _shows(state: dict[str, Any], texts: list[str]) -> bool:
    return all(shown.endswith(text) for shown, text in zip(state["shown"], texts, strict=True))


@pytest.mark.parametrize("width", [400, 1200])
def test_the_slider_moves_the_clip_range(browser: Any, page: Path, results: LabResults, width: int) -> None:
    _open(browser, page, width, "light")
    before = browser.execute_script(EXPLORER, 0)
    assert _shows(before, _clip_texts(results, 0))
    slider = browser.find_element("css selector", ".explorer input")
    for stop in (1, 2, 3):
        slider.send_keys("\ue014")  # the arrow to the right
        after = browser.execute_script(EXPLORER, 0)
        assert after["stop"] == str(stop)
        assert _shows(after, _clip_texts(results, stop))
        assert after["below"] >= before["below"]
        assert after["above"] < before["above"] or stop == 1
        assert after["shade"] >= before["shade"]
        before = after
    assert browser.get_log("browser") == []


def test_dragging_over_the_histogram_moves_the_clip_range(browser: Any, page: Path, results: LabResults) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    _open(browser, page, 1200, "dark")
    chart = browser.find_element("css selector", ".explorer svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    state = browser.execute_script(EXPLORER, 0)
    middle = (state["below"] + state["above"]) / 2 - state["box"][0] - state["box"][2] / 2
    outside = state["above"] - state["box"][0] - state["box"][2] / 2
    actions = ActionChains(browser, duration=0)
    actions.move_to_element_with_offset(chart, outside, 0).click_and_hold()
    actions.move_to_element_with_offset(chart, (outside + middle) / 2, 0).perform()
    assert _shows(browser.execute_script(EXPLORER, 0), _clip_texts(results, 2))  # half of the largest weight
    ActionChains(browser, duration=0).move_to_element_with_offset(chart, middle, 0).release().perform()
    assert _shows(browser.execute_script(EXPLORER, 0), _clip_texts(results, 3))
    ActionChains(browser, duration=0).move_to_element_with_offset(chart, outside, 0).perform()  # the button is up
    assert _shows(browser.execute_script(EXPLORER, 0), _clip_texts(results, 3))
    assert browser.execute_script(EXPLORER, 1)["stop"] == "0"  # the other layers keep their ranges
    assert browser.get_log("browser") == []


def test_without_a_script_the_widest_range_is_drawn(browser: Any, page: Path, tmp_path: Path) -> None:
    still = tmp_path / "still.html"
    text = page.read_text()
    still.write_text(text[: text.rindex("<script>")] + text[text.rindex("</script>") + len("</script>") :])
    _open(browser, still, 400, "light")
    state = browser.execute_script(EXPLORER, 0)
    assert state["shown"]
    assert browser.execute_script("return document.querySelector('.explorer input').hidden")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
