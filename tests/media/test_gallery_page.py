"""The page in a browser: it opens from disk, plays, scrubs, filters, subtracts, and asks the network for nothing."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import chromium
import clips
import numpy as np
import pytest
from PIL import Image

from ltxgen.media.compare import compare_runs
from ltxgen.media.gallery import write_comparison, write_gallery

pytestmark = pytest.mark.skipif(
    chromium.PROGRAM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)

HOSTILE = "<img src=x onerror=window.hacked=1></script><script>window.hacked=1</script> \"quotes' 猫"
VIDEOS = "[...document.querySelectorAll('#grid video')]"


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Page]:
    with chromium.browser() as page:
        yield page


@pytest.fixture
def page(browser: chromium.Page) -> Iterator[chromium.Page]:
    """The browser with a wide, light window; afterwards nothing may have gone wrong in it."""
    browser.errors.clear()
    browser.requests.clear()
    browser.resize(1200, 900)
    yield browser
    assert browser.errors == []
    assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two by two, one of them failed; and one pending."""
    folder = tmp_path_factory.mktemp("a sweep #1%")  # in addresses these need quoting
    jobs = []
    for number, (strength, seed) in enumerate([("0.5", 1), ("0.5", 2), ("10", 1)]):
        clips.write_run(folder / str(number), shade=20 + 30 * number, prompt=HOSTILE)
        jobs.append({"overrides": [f"stages.refine.loras.distilled={strength}", f"request.seed={seed}"]})
    failed = ["stages.refine.loras.distilled=10", "request.seed=2"]
    pending = ["stages.refine.loras.distilled=2", "request.seed=2"]
    jobs += [{"overrides": failed, "status": "failed", "error": HOSTILE}, {"overrides": pending, "status": "pending"}]
    return write_gallery(clips.write_sweep(folder, jobs, {"transformer": 1}))


def opened(page: chromium.Page, path: Path, fragment: str = "") -> chromium.Page:
    page.call("Page.navigate", url="about:blank")  # a new fragment alone would not load anew
    page.open(path, fragment)
    page.wait(f"{VIDEOS}.filter(video => video.src).every(video => video.readyState >= 2)")
    return page


def times(page: chromium.Page) -> list[float]:
    return page.run(f"{VIDEOS}.map(video => video.currentTime)")


def grey(page: chromium.Page, selector: str) -> float:
    """The mean grey in the middle of what an element shows."""
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot(selector))).convert("L"), dtype=float)
    height, width = pixels.shape
    return float(pixels[height // 3 : height // 2, width // 3 : width // 2].mean())


def becomes(page: chromium.Page, selector: str, shade: float, tolerance: float) -> bool:
    """Whether an element comes to show this grey: a frame that was sought is painted a little later."""
    latest = time.monotonic() + 10
    while abs(grey(page, selector) - shade) > tolerance:
        if time.monotonic() > latest:
            return False
        time.sleep(0.1)
    return True


def click(page: chromium.Page, selector: str) -> None:
    x, y = page.run(
        f"(box => [box.x + box.width / 2, box.y + box.height / 2])"
        f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
    )
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def test_it_opens_with_parameters_on_its_axes(page, sweep):
    opened(page, sweep)
    assert page.run("document.title").startswith("tiny · ")
    assert page.run("[...document.querySelectorAll('thead th')].map(head => head.textContent)") == ["0.5", "2", "10"]
    rows = page.run("[...document.querySelectorAll('tbody th')].map(head => head.textContent)")
    assert rows == ["seed 1", "seed 2"]
    cells = page.run("[...document.querySelectorAll('tbody tr')].map(row => row.querySelectorAll('.card').length)")
    assert cells == [2, 3]
    assert page.run("document.querySelector('.failed pre').textContent") == HOSTILE
    assert "not run yet" in page.run("document.querySelector('.pending').textContent")
    assert page.run("window.hacked") is None


def test_videos_play_in_step_and_pause(page, sweep):
    opened(page, sweep)
    page.press("Space")
    page.wait(f"{VIDEOS}.every(video => video.currentTime > 0.2 && !video.paused)")
    now = times(page)
    assert max(now) - min(now) < 0.1
    page.press("Space")
    page.wait(f"{VIDEOS}.every(video => video.paused && !video.seeking)")
    stopped = times(page)
    time.sleep(0.2)
    assert times(page) == stopped
    assert len(set(stopped)) == 1  # all on one frame


def test_speed_and_loop(page, sweep):
    opened(page, sweep)
    page.run("setSpeed(2), clock.seek(0.9), clock.play()")
    page.wait("clock.time < 0.5 && clock.playing")  # it went round
    page.press("l")
    page.wait("!clock.playing")
    assert page.run("clock.time === clock.duration")
    page.run("setSpeed(1)")


def test_scrubbing_moves_every_video_to_the_frame(page, sweep):
    opened(page, sweep)
    page.run(
        "((slider) => { slider.value = 0.62; slider.dispatchEvent(new Event('input')); })"
        "(document.getElementById('scrub'))"
    )
    page.wait(f"{VIDEOS}.every(video => !video.seeking && Math.abs(video.currentTime - 15.5 / 25) < 1e-3)")
    assert "15/24" in page.run("document.getElementById('time').textContent")
    for number, shade in enumerate((20, 50, 80)):
        assert becomes(page, f"video[data-run='{number}']", clips.grey_of(15, shade), 3)
    page.press("ArrowRight")
    page.wait(f"{VIDEOS}.every(video => !video.seeking && Math.abs(video.currentTime - 16.5 / 25) < 1e-3)")
    page.press("End")
    page.press("ArrowRight")
    page.wait(f"{VIDEOS}.every(video => Math.abs(video.currentTime - 24.5 / 25) < 1e-3)")
    page.press("Home")
    page.press("ArrowLeft")
    page.wait(f"{VIDEOS}.every(video => Math.abs(video.currentTime - 0.5 / 25) < 1e-3)")


def test_filters_and_the_address_that_keeps_them(page, sweep):
    opened(page, sweep)
    cards = "[...document.querySelectorAll('#grid .card')].map(card => card.run.name)"
    click(page, "[data-key='request.seed'] .chip[data-value='2']")
    assert page.run(cards) == ["0", "2"]
    assert page.run("document.getElementById('matches').textContent") == "2 of 5"
    page.run(
        "((search) => { search.value = 'DISTILLED=10'; search.dispatchEvent(new Event('input')); })"
        "(document.getElementById('search'))"
    )
    assert page.run(cards) == ["2"]
    fragment = page.run("location.hash")
    opened(page, sweep, fragment)
    assert page.run(cards) == ["2"]
    page.run(
        "((search) => { search.value = 'nothing has this'; search.dispatchEvent(new Event('input')); })"
        "(document.getElementById('search'))"
    )
    assert page.run(cards) == []
    assert "No run matches" in page.run("document.getElementById('grid').textContent")


def test_axes_can_be_chosen(page, sweep):
    opened(page, sweep)
    page.run(
        "((axis) => { axis.value = 'request.seed'; axis.dispatchEvent(new Event('change')); })"
        "(document.querySelector('[data-axis=columns]'))"
    )
    assert page.run("[...document.querySelectorAll('thead th')].map(head => head.textContent)") == ["1", "2"]
    assert page.run("document.querySelectorAll('tbody tr').length") == 3
    page.run(
        "((axis) => { axis.value = ''; axis.dispatchEvent(new Event('change')); })"
        "(document.querySelector('[data-axis=rows]'))"
    )
    assert page.run("document.querySelectorAll('tbody tr').length") == 1
    assert page.run("document.querySelectorAll('#grid .card').length") == 5


def test_difference_of_two_runs(page, sweep):
    opened(page, sweep)
    page.run("choose('A', RUNS[0]), choose('B', RUNS[1])")
    page.press("d")
    page.run("clock.step(7)")
    page.wait("document.querySelector('#pair canvas')?.dataset.frame === '7'")
    assert becomes(page, "#pair canvas", 30 * 4, 12)  # 30 levels apart, brightened four times
    page.run("pair.b = RUNS[0], drawPair()")
    page.wait("document.querySelector('#pair canvas')?.dataset.frame === '7'")
    assert becomes(page, "#pair canvas", 0, 1)
    page.run("pair.b = RUNS[1], drawPair(), clock.play()")
    page.wait("Number(document.querySelector('#pair canvas')?.dataset.frame) > 12")  # it is drawn while playing
    page.press("Escape")
    page.wait(f"document.getElementById('pair').hidden && {VIDEOS}.length === 3")
    page.run("pair.frames = [1, 1], drawDifference()")  # as frames of the closed pair do that come late


def test_difference_without_word_of_the_frame(page, sweep):
    """As when a frame comes between one frame's callback and the request for the next."""
    opened(page, sweep)
    page.run("HTMLVideoElement.prototype.requestVideoFrameCallback = () => 0")
    page.run("choose('A', RUNS[0]), choose('B', RUNS[1]), openPair('difference'), clock.step(7)")
    page.wait("document.querySelector('#pair canvas')?.dataset.frame === '7'")
    assert becomes(page, "#pair canvas", 30 * 4, 12)


def test_wipe_and_side_by_side(page, sweep):
    opened(page, sweep)
    page.run("clock.seek(0), choose('A', RUNS[0]), choose('B', RUNS[2])")
    page.wait("[...document.querySelectorAll('#pair video')].every(video => video.readyState >= 2 && !video.seeking)")
    for place, shade in ((1, 20), (2, 80)):
        assert becomes(page, f"#pair figure:nth-child({place}) video", shade, 3)
    page.press("w")
    page.wait("[...document.querySelectorAll('#pair video')].every(video => video.readyState >= 2 && !video.seeking)")
    for slider, shade in ((100, 20), (0, 80)):
        page.run(
            f"((wipe) => {{ wipe.value = {slider}; wipe.dispatchEvent(new Event('input')); }})"
            "(document.querySelector('#pair .setting input'))"
        )
        assert becomes(page, "#pair .screen", shade, 3)
    page.press("x")
    assert page.run("[pair.a.index, pair.b.index]") == [2, 0]


def test_sound_of_the_video_under_the_pointer_only(page, sweep):
    opened(page, sweep)
    muted = f"{VIDEOS}.map(video => video.muted)"
    assert page.run(muted) == [True] * 3
    page.press("Space")  # from now on the reader has touched the page, and browsers allow sound
    click(page, "video[data-run='1']")
    shown = page.run(f"{VIDEOS}.map(video => Number(video.dataset.run))")
    assert page.run(muted) == [number != 1 for number in shown]
    page.press("m")
    assert page.run(muted) == [True] * 3
    page.press("m")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    page.wait(f"{muted}.every(Boolean)")
    click(page, "video[data-run='0'] ~ .right .speaker")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert page.run(muted) == [number != 0 for number in shown]


def test_details_show_hostile_texts_as_texts(page, sweep):
    opened(page, sweep)
    page.run("document.querySelector('.card.done').focus()")
    page.press("Enter")
    assert page.run("document.querySelector('dialog[open] .prompt').textContent") == HOSTILE
    links = page.run("[...document.querySelectorAll('dialog[open] .links a')].map(link => link.href)")
    assert links[:2] == [(sweep.parent / "0" / name).as_uri() for name in ("video.mp4", "recipe.yaml")]
    told = page.run("document.querySelector('dialog[open] .stages').textContent")
    assert "from the cache" in told
    assert "+ 1.00 s loading" in told
    pictures = "[...document.querySelectorAll('dialog[open] img')]"
    page.wait(f"{pictures}.length === 2 && {pictures}.every(image => image.naturalWidth === 640)")
    assert page.run("window.hacked") is None
    page.press("Escape")


def test_even_a_script_that_got_in_would_not_run(browser, sweep):
    browser.resize(1200, 900)
    opened(browser, sweep)
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked=1'}))"
    )
    browser.run(
        "document.body.append(Object.assign(document.createElement('div'), {innerHTML: '<b onclick=\"1\"></b>'}))"
    )
    browser.run("document.querySelector('b[onclick]').click()")
    answer = browser.run("fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.name)")
    assert browser.run("window.hacked") is None
    assert answer == "TypeError"
    assert sum("Content Security Policy" in error for error in browser.errors) >= 3


def test_a_phone(page, sweep):
    page.resize(390, 844, phone=True, dark=True)
    opened(page, sweep)
    wide = "[...document.querySelectorAll('body *')].filter(each => each.getBoundingClientRect().right > 391)"
    assert page.run(f"{wide}.map(each => each.outerHTML.slice(0, 80))") == []
    assert page.run("getComputedStyle(document.querySelector('#grid .values .axis')).display") == "flex"
    page.run("choose('A', RUNS[0]), choose('B', RUNS[1])")
    assert page.run(f"{wide}.map(each => each.outerHTML.slice(0, 80))") == []
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 18, 20)"


def test_every_control_has_a_name(page, sweep):
    page.call("Accessibility.enable")
    opened(page, sweep)
    page.run("choose('A', RUNS[0]), choose('B', RUNS[1]), openPair('wipe')")
    for opened_view in ("pair", "grid"):
        if opened_view == "grid":
            page.press("Escape")
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        named = {"button", "slider", "combobox", "searchbox", "tab", "image", "table", "article", "region"}
        found = [
            (node["role"]["value"], node.get("name", {}).get("value"))
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in named
        ]
        assert {"button", "slider", "combobox"} <= {role for role, _ in found}
        assert [role for role, name in found if not name and role != "table"] == []
    page.call("Accessibility.disable")


def test_fifty_videos_are_light(page, tmp_path):
    """What is far below the screen is a poster; its video is not even asked for."""
    source = clips.write_run(tmp_path / "0", 20)
    for number in range(1, 50):
        shutil.copytree(source, tmp_path / str(number))
    path = write_gallery(clips.write_sweep(tmp_path, [{"overrides": [f"seed={number}"]} for number in range(50)]))
    assert path.stat().st_size < 2**20
    opened(page, path)
    assert page.run(f"{VIDEOS}.length") == 50
    assert 1 <= page.run(f"{VIDEOS}.filter(video => video.src).length") <= 30
    asked = {address for address in page.requests if address.endswith(".mp4")}
    assert (tmp_path / "49" / "video.mp4").as_uri() not in asked
    page.run("document.getElementById('scroll').scrollTo(0, 1e6)")
    page.wait("document.querySelector(\"video[data-run='49']\").readyState >= 2")
    page.wait("!document.querySelector(\"video[data-run='0']\").src")


def test_a_page_of_two_runs(page, tmp_path):
    a, b = clips.write_run(tmp_path / "a", 20), clips.write_run(tmp_path / "b", 30)
    path = write_comparison(a, b, compare_runs(a, b), tmp_path / "compare.html")
    opened(page, path)
    page.wait("[...document.querySelectorAll('#pair video')].every(video => video.readyState >= 2)")
    points = page.run("document.querySelector('.curve').getAttribute('points').split(' ').length")
    assert points == clips.NUM_FRAMES
    page.run("clock.step(5)")
    psnr = page.run("DATA.psnr[5].toFixed(2)")
    assert page.run("document.querySelector('.reading').textContent") == f"frame 5: {psnr} dB"
    facts = page.run("document.querySelector('.facts').textContent")
    assert "request.seed" in facts
    assert "not compared" in facts
