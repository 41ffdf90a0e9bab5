"""The report opened in a real browser, as a reader would."""

import json
import shutil

import pytest

from sinkjax.studies.sweep.tables import summary_tables

webdriver = pytest.importorskip("selenium.webdriver")

_CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (_CHROMIUM and _DRIVER),
    reason="needs Chromium and its driver: apt-get install chromium chromium-driver",
)

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture(scope="module")
def browser(report, tmp_path_factory):
    """A browser that has opened the report."""
    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    for flag in _FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # The driver is named, so that selenium looks for none on the network.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    try:
        driver.get("about:blank")
        driver.get_log("performance")  # what the browser's own first page asked for
        driver.get(report.as_uri())
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def resize(browser):
    """Sets the width of the page; a window cannot be as narrow as a telephone."""

    def resize(width):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    yield resize
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_fails_and_nothing_is_fetched(browser, report):
    assert browser.get_log("browser") == []
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert report.as_uri() in asked
    elsewhere = [url for url in asked if not url.startswith(("data:", report.as_uri()))]
    assert elsewhere == []
    assert [e for e in events if e["method"] == "Network.loadingFailed"] == []


def test_every_figure_is_shown(browser, report):
    images = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt])"
    )
    assert len(images) == len(list((report.parent / "figures").iterdir()))
    assert all(complete and width > 0 and alt for complete, width, alt in images)


def test_every_cell_of_the_summary_tables_is_there(browser, sweep):
    shown = browser.execute_script(
        """return [...document.querySelectorAll("figure.table")].map(figure => [
          figure.querySelector("figcaption").textContent,
          [...figure.querySelectorAll("tbody tr")].map(
            row => [...row.cells].map(cell => cell.textContent))])"""
    )
    shown = {title: rows for title, rows in shown}
    for table in summary_tables(*sweep):
        assert shown[table.title] == [list(row) for row in table.rows]


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("folded", [True, False])
def test_the_page_does_not_overflow(browser, resize, width, folded):
    resize(width)
    browser.execute_script(
        "document.querySelectorAll('details').forEach(d => { d.open = !arguments[0] })", folded
    )
    assert_fits(browser, width)


def test_figures_are_as_wide_as_the_column_on_a_desk_and_legible_on_a_telephone(browser, resize):
    widths = {}
    for width in (1280, 400):
        resize(width)
        widths[width] = browser.execute_script(
            "return document.querySelector('.picture img').getBoundingClientRect().width"
        )
    assert 900 < widths[1280] <= 1040
    assert widths[400] >= 700  # scrolled, not shrunk


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page(browser, scheme):
    """WCAG 2.1's contrast ratio, at least 4.5 for text of this size, in either scheme."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    colours = browser.execute_script(
        """const colour = (s, p) => getComputedStyle(document.querySelector(s))[p];
        return [colour("body", "backgroundColor"),
          ["body", ".note", "a", "figcaption", "thead th"].map(s => colour(s, "color"))]"""
    )
    page, texts = colours
    assert (luminance(page) < 0.2) == (scheme == "dark")
    for text in texts:
        darker, lighter = sorted([luminance(page), luminance(text)])
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_every_entry_of_the_contents_leads_somewhere(browser):
    targets = browser.execute_script(
        "return [...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))"
    )
    assert len(targets) > 8
    for target in targets:
        assert browser.execute_script("return document.querySelector(arguments[0])", target)


def test_the_page_of_a_quality_run_is_as_sound(browser, resize, quality_report):
    """The last test: the browser leaves the sweep's page."""
    browser.get(quality_report.as_uri())
    assert browser.get_log("browser") == []
    for width in (1280, 400):
        resize(width)
        assert_fits(browser, width)
    shown = browser.execute_script(
        "return [...document.images].map(i => i.complete && i.naturalWidth > 0)"
    )
    assert shown == [True] * 3
    lead = browser.execute_script(
        """return [...document.querySelectorAll("nav a")].map(
          a => document.querySelector(a.getAttribute("href")) !== null)"""
    )
    assert lead == [True] * 6


def assert_fits(browser, width):
    """Nothing is wider than the page but what scrolls in a frame of its own: tables, figures."""
    page = browser.execute_script(
        "return [window.innerWidth, document.documentElement.scrollWidth]"
    )
    assert page == [width, width]
    beyond = browser.execute_script(
        """return [...document.querySelectorAll("main *")].filter(
          e => !e.closest(".scroll") && e.getBoundingClientRect().right > window.innerWidth + 1
        ).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert beyond == []


def luminance(colour):
    """Relative luminance of `rgb(r, g, b)`."""
    channels = [int(n) / 255 for n in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
