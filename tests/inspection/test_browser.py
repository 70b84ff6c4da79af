"""The inspector as people meet it: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from inspection.small_run import FORMULA, ITEM_IDS, SCRIPT

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"
)
PAGES = (
    "/",
    "/users",
    "/user?id=u005",
    "/items",
    "/item?id=i005",
    "/sids",
    "/sids?prefix=0",
    "/items?q=shoe&segment=tail",
    "/labels?sort=label&confidence=1",
    "/report",
    "/labels",
    "/compare",
    "/artifact?key=labels%2Fgpl",
    "/user?id=nobody",
    "/labels?label_min=2",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu"]
        made = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield made
        made.close()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Any, url: str) -> Iterator[Any]:
    """A page that fails the test on any error of the browser's console."""
    context = browser.new_context(
        base_url=url, color_scheme=request.param, viewport={"width": 390, "height": 844}
    )
    context.set_default_timeout(120_000)
    made = context.new_page()
    said: list[str] = []
    made.on("pageerror", lambda error: said.append(str(error)))
    made.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    yield made
    context.close()
    # A refused page is an error of the console by itself.
    assert [one for one in said if "404" not in one and "422" not in one] == []


def test_pages_load_draw_and_pass_axe(page: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe, wrong = Axe(), []
    for path in PAGES:
        page.goto(path, wait_until="networkidle")
        plots = page.locator(".plot").count()
        page.wait_for_function(
            "n => document.querySelectorAll('.plot .main-svg').length >= n", arg=plots
        )
        width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0, f"{path} is {width} pixels wider than a phone"
        found = axe.run(page)
        if found.violations_count:
            wrong.append(f"{path}: {found.generate_report()}")
    assert not wrong, "\n".join(wrong)


def test_names_stay_in_sight_when_a_table_is_scrolled(page: Any) -> None:
    for path, table in (("/user?id=u005", "Candidates"), ("/labels", "Pseudo-labels")):
        page.goto(path)
        region = page.get_by_role("region", name=table, exact=True)
        name = region.get_by_role("rowheader").first
        before = name.bounding_box()
        region.evaluate("node => { node.scrollLeft = node.scrollWidth; }")
        assert region.evaluate("node => node.scrollLeft") > 100
        assert name.bounding_box() == before


def _appears(found: Any) -> bool:
    """Wait for what a click on a link leads to: the click itself returns before the next page."""
    found.wait_for()
    return bool(found.is_visible())


def test_search_filter_compare_and_download(page: Any, tmp_path: Path) -> None:
    page.goto("/users")
    page.get_by_label("user id begins with").fill("u005")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name="u005").click()
    assert _appears(page.get_by_role("heading", name="User u005"))
    assert page.get_by_text("because of anchor").count()

    page.goto("/items")
    page.get_by_label("title holds, or id is").fill("<script>")
    page.keyboard.press("Enter")
    page.get_by_role("link", name=SCRIPT).click()
    assert _appears(page.get_by_role("heading", name=SCRIPT))
    assert page.locator("code", has_text=ITEM_IDS[0]).count()

    page.goto("/labels")
    page.get_by_label("title holds").fill("hyperlink")
    page.get_by_role("button", name="Filter").click()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="CSV").click()
    waiting.value.save_as(tmp_path / "labels.csv")
    titles = pl.read_csv(tmp_path / "labels.csv", infer_schema=False)["title"]
    assert set(titles) == {f"'{FORMULA}"}

    page.goto("/compare")
    page.get_by_role("checkbox", name="exposed-only").check()
    page.locator("select[name=metric]").select_option("auc")
    page.get_by_role("button", name="Compare").click()
    assert _appears(page.get_by_role("heading", name=re.compile("^auc on")))
    assert page.locator("tr.method").count() == 0  # only the one that was chosen


def test_pages_work_without_scripts_and_by_keyboard(browser: Any, url: str) -> None:
    context = browser.new_context(base_url=url, java_script_enabled=False)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto("/labels")
    assert page.locator(".plot .main-svg").count() == 0
    assert page.get_by_role("row").count() > 10
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the content"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{url}/")
    context.close()
