"""The page in a real browser: sorts, plays, fits, keeps quiet, in both themes and at two widths."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

import imageio
import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from rlflow.board import Board
from rlflow.leaderboard_samples import Gallery, Sample
from rlflow.report import write_board
from tests.boards import full_board

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDE, NARROW = 1280, 400
# WCAG 2.1, level AA, for text of any size.
MIN_CONTRAST = 4.5
MIN_TEXT_PX = 10


def browser_path() -> str:
    """The system's browser; without one CI fails and a desk skips."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        reason = f"expected one of {BROWSERS} on the PATH, found none; Debian: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def board() -> Board:
    """Five entrants, the last one incomplete."""
    return full_board()


@pytest.fixture(scope="module")
def address(board: Board, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of `board` with an image, a rollout video and completions."""
    folder = tmp_path_factory.mktemp("page")
    frames = np.random.default_rng(0).integers(0, 255, (12, 64, 96, 3), dtype=np.uint8)
    imageio.imwrite(folder / "images.png", frames[0])
    with imageio.get_writer(folder / "rollout.mp4", fps=10, macro_block_size=8) as film:
        for frame in frames:
            film.append_data(frame)
    words = "a_word_without_a_space_that_is_longer_than_a_telephone_is_wide " * 4
    (folder / "completions.csv").write_text(f"prompt,completion\n24,{words}\n", encoding="utf-8")
    places = {"images.png": 1, "rollout.mp4": 0, "completions.csv": 2}
    samples = tuple(
        Sample(
            algorithm=entrant.algorithm,
            column=board.columns[place],
            about="seed 0 after 1,000 rollouts",
            name=name,
            content=(folder / name).read_bytes(),
        )
        for name, place in places.items()
        for entrant in board.entrants[:2]
    )
    gallery = Gallery(samples=samples, left_out=("ppo on image/shapes: more.png, 30.0 MB",))
    return write_board(board, folder / "board", gallery)[1].as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser; root may not use its sandbox."""
    path = browser_path()
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser: Browser, address: str, width: int = WIDE, theme: str = "light") -> tuple[Page, list[str]]:
    """The page, and a list that gets every error and every request beside the page itself."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
    noise: list[str] = []
    page.on("console", lambda message: noise.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("request", lambda request: noise.append(request.url) if request.url.split(":")[0] != "data" else None)
    page.goto(address)
    noise.remove(address)
    return page, noise


def contrast(page: Page, selector: str) -> float:
    """Contrast of an element's text to the page's background, by the formula of WCAG 2.1."""
    shown = "fill" if selector.startswith("svg") else "color"
    ink = page.eval_on_selector(selector, f"e => getComputedStyle(e).{shown}")
    paper = page.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor")
    bright, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_fits_reads_and_keeps_quiet(browser: Browser, address: str, width: int, theme: str) -> None:
    page, noise = opened(browser, address, width, theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("h1", "table.board td.name", "table.board .sub", "figure h3", "svg text"):
        assert contrast(page, selector) >= MIN_CONTRAST, selector
    sizes = page.eval_on_selector_all("td, .sub, p, li", "es => es.map(e => parseFloat(getComputedStyle(e).fontSize))")
    assert min(sizes) >= MIN_TEXT_PX
    # The labels of a figure grow and shrink with it.
    heights = page.eval_on_selector_all("figure svg text", "es => es.map(e => e.getBoundingClientRect().height)")
    assert np.median(heights) >= MIN_TEXT_PX
    assert noise == []
    page.close()


def heading(page: Page, name: str) -> Locator:
    """A heading of the board; other tables have the same names."""
    return page.locator("table.board").get_by_role("columnheader", name=name)


def order(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("table.board tbody td.name").all_inner_texts()]


def by_task(board: Board, column: str) -> list[str]:
    """Algorithms by their mean on `column`, best first."""
    means = {entrant.algorithm: entrant.cells[column].normalised.mean() for entrant in board.entrants}
    return sorted(means, key=lambda name: -means[name])


def test_a_click_on_a_heading_sorts_and_another_one_turns_it_round(
    browser: Browser, address: str, board: Board
) -> None:
    page, noise = opened(browser, address)
    start = [entrant.algorithm for entrant in board.entrants]
    assert order(page) == start
    head = heading(page, "image/shapes")
    head.get_by_role("button").click()
    assert order(page) == by_task(board, "image/shapes") != start
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").click()
    assert order(page) == by_task(board, "image/shapes")[::-1]
    # By M: the incomplete entrant has none and stays last in both directions.
    whole = heading(page, "M [95 %]")
    whole.get_by_role("button").click()
    assert order(page) == start
    whole.get_by_role("button").press("Enter")
    assert order(page) == [*start[:-1][::-1], start[-1]]
    assert page.locator("table.board th[aria-sort=none]").count() == 9
    assert noise == []
    page.close()


def test_a_narrow_page_sorts_by_a_list_of_the_columns(browser: Browser, address: str, board: Board) -> None:
    page, noise = opened(browser, address, NARROW)
    assert page.locator("#sort").is_visible()
    page.locator("#sort").select_option(label="reasoning/countdown")
    assert order(page) == by_task(board, "reasoning/countdown")
    assert noise == []
    page.close()


def test_numbers_of_a_narrow_page_stay_on_one_line(browser: Browser, address: str) -> None:
    page, _ = opened(browser, address, NARROW)
    lines = page.eval_on_selector_all(
        ".scroll table:not(.board) td",
        "es => es.map(e => e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).lineHeight))",
    )
    # Measures alone has six columns of four entrants; padding is less than a second line.
    assert len(lines) > 24
    assert max(lines) < 2
    page.close()


def test_the_button_changes_the_theme(browser: Browser, address: str) -> None:
    page, _ = opened(browser, address, theme="dark")
    dark = page.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor")
    page.locator("#theme").click()
    light = page.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor")
    assert luminance(dark) < 0.05 < 0.9 < luminance(light)
    assert contrast(page, "svg text") >= MIN_CONTRAST
    page.close()


def test_the_gallery_plays_and_shows_its_samples(browser: Browser, address: str) -> None:
    page, noise = opened(browser, address)
    video = page.locator("video").first
    video.scroll_into_view_if_needed()
    page.wait_for_function(
        "() => { const v = document.querySelector('video'); return !v.paused && v.currentTime > 0; }"
    )
    assert video.evaluate("v => [v.muted, v.loop, v.videoWidth]") == [True, True, 96]
    assert page.eval_on_selector_all(".sample img", "es => es.map(e => e.naturalWidth)") == [96, 96]
    assert page.locator(".completions tbody tr").count() == 2
    assert page.get_by_text("ppo on image/shapes: more.png, 30.0 MB").is_visible()
    figure = page.locator(".sample").first
    before = figure.bounding_box()
    figure.get_by_role("button", name="enlarge").click()
    after = figure.bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] > 1.5 * before["width"]
    assert noise == []
    page.close()


def test_a_missing_browser_fails_in_ci_and_skips_at_a_desk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        browser_path()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="found none"):
        browser_path()
