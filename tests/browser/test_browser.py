"""The page in a real browser: each tab makes its files; what people look at is what the files say."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from modality_forcing.server.page.examples import FOLDER

pytestmark = pytest.mark.slow
PHONE = {"width": 390, "height": 844}
ALWAYS = {"rgb.png", "depth.npy", "depth.png", "depth_magma.png", "metadata.json"}


def fetch(server: SimpleNamespace, job: str, name: str) -> bytes:
    with urlopen(f"{server.address}/v1/jobs/{job}/results/0/{name}") as answer:
        return answer.read()


def finish(page: Any, task: str) -> str:
    """Press the button of a tab and wait for its result; the job's id."""
    before = page.get_attribute(".mf-done", "data-job") if page.query_selector(".mf-done") else ""
    page.click(f"#{task}-run")
    page.wait_for_selector(f".mf-done:not([data-job='{before}']) mf-view[data-state=ready], .mf-error")
    assert page.query_selector(".mf-error") is None, page.inner_text(".mf-error")
    return page.get_attribute(".mf-done", "data-job")


def open_tab(page: Any, task: str) -> None:
    page.get_by_role("tab", name=re.compile(_TITLES[task])).click()
    page.wait_for_selector(f"#{task}-run:visible")


_TITLES = {
    "joint": "Text to picture and depth", "i2d": "Picture to depth", "d2i": "Depth to picture",
    "complete": "Complete sparse depth", "inpaint": "Make a part anew",
}  # fmt: skip


def choose(page: Any, task: str, field: str, name: str) -> None:
    page.set_input_files(f"#{task}-{field} input[type=file]", str(FOLDER / name))
    page.wait_for_selector(f"#{task}-{field} img, #{task}-{field} .file-preview")


def check_files(server: SimpleNamespace, page: Any, job: str, task: str) -> dict[str, Any]:
    names = set(page.eval_on_selector_all(".mf-files a", "links => links.map(link => link.download)"))
    assert names >= ALWAYS
    for name in names:
        assert len(fetch(server, job, name)) > 0
    metadata = json.loads(fetch(server, job, "metadata.json"))
    assert metadata["provenance"]["task"] == task
    assert set(metadata["files"]) == names
    return metadata


def test_joint_makes_all_files_and_downloads_them(
    visitor: Any, server: SimpleNamespace, tmp_path: Path
) -> None:
    page = visitor()
    page.fill("#joint-prompt textarea", "a castle on a hill")
    page.click("text=How it is made >> visible=true")
    page.fill("#joint-seed :is(input, textarea)", "7")
    job = finish(page, "joint")
    metadata = check_files(server, page, job, "joint")
    assert (metadata["provenance"]["prompt"], metadata["provenance"]["seed"]) == ("a castle on a hill", 7)
    with page.expect_download() as waiting:
        page.click(".mf-files a:has-text('depth.npy')")
    waiting.value.save_as(tmp_path / "depth.npy")
    assert np.load(tmp_path / "depth.npy").shape == (64, 64)


def test_picture_to_depth_keeps_the_picture(visitor: Any, server: SimpleNamespace) -> None:
    page = visitor()
    open_tab(page, "i2d")
    choose(page, "i2d", "image", "street.png")
    job = finish(page, "i2d")
    check_files(server, page, job, "i2d")
    made = np.array(Image.open(io.BytesIO(fetch(server, job, "rgb.png"))))
    assert np.array_equal(made, np.array(Image.open(FOLDER / "street.png")))


def test_depth_to_picture_and_what_the_viewer_shows(visitor: Any, server: SimpleNamespace) -> None:
    page = visitor()
    open_tab(page, "d2i")
    choose(page, "d2i", "depth", "kitchen_depth.png")
    page.fill("#d2i-prompt textarea", "a kitchen")
    job = finish(page, "d2i")
    assert check_files(server, page, job, "d2i")["depth"]["unit"] == "m"
    depth = np.load(io.BytesIO(fetch(server, job, "depth.npy")))
    _check_readout(page, depth)
    _check_colours(page, server, job)
    _check_camera(page, np.array(Image.open(io.BytesIO(fetch(server, job, "rgb.png")))))


def _check_readout(page: Any, depth: np.ndarray) -> None:
    """By pointer and by keys: the number under the cursor is the file's, with its unit."""
    height, width = depth.shape
    canvas = page.locator("mf-view [data-part=canvas]")
    box = canvas.bounding_box()
    column, row = 3 * width // 4, height // 4
    canvas.hover(
        position={"x": (column + 0.5) * box["width"] / width, "y": (row + 0.5) * box["height"] / height}
    )
    text = page.inner_text("mf-view [data-part=readout]")
    found = re.fullmatch(r"column (\d+), row (\d+): depth ([\d.]+) m", text)
    assert found is not None, text
    assert (int(found[1]), int(found[2])) == (column, row)
    assert float(found[3]) == pytest.approx(depth[row, column], rel=2e-3)
    canvas.focus()
    for key in ("ArrowLeft", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    assert page.inner_text("mf-view [data-part=readout]").startswith(f"column {column - 1}, row {row + 2}:")


def _check_colours(page: Any, server: SimpleNamespace, job: str) -> None:
    """The saved colours are those of ``depth_magma.png``; another range changes them."""

    def saved() -> np.ndarray:
        with page.expect_download() as waiting:
            page.click("mf-view [data-save]")
        return np.array(Image.open(waiting.value.path()).convert("RGB")).astype(int)

    expected = np.array(Image.open(io.BytesIO(fetch(server, job, "depth_magma.png")))).astype(int)
    assert np.abs(saved() - expected).max() <= 6  # one step of the table: the range shows six digits
    page.fill("mf-view [data-part=far]", "2.5")
    page.keyboard.press("Tab")
    assert np.abs(saved() - expected).mean() > 5
    page.select_option("mf-view [data-part=map]", "gray")
    gray = saved()
    assert np.array_equal(gray[..., 0], gray[..., 1])
    page.fill("mf-view [data-part=far]", "-1")
    page.keyboard.press("Tab")
    assert page.get_attribute("mf-view [data-part=far]", "aria-invalid") == "true"
    page.click("mf-view [data-part=auto]")


def _check_camera(page: Any, rgb: np.ndarray) -> None:
    """The surface in 3D, seen by the camera of the picture, is the picture; turned, it is not."""
    page.click("mf-view [data-mode=solid]")
    page.select_option("mf-view [data-part=shape]", "mesh")
    scene = page.locator("mf-view [data-part=scene]")

    def seen() -> np.ndarray:
        code = """canvas => { const gl = canvas.getContext('webgl2'), n = 64, out = [];
          for (let v = 0; v < n; v++) for (let u = 0; u < n; u++) {
            const p = new Uint8Array(4);
            const x = (u + 0.5) / n * canvas.width, y = (1 - (v + 0.5) / n) * canvas.height;
            gl.readPixels(x, y, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, p);
            out.push(p[0], p[1], p[2]);
          } return out; }"""
        return np.array(scene.evaluate(code)).reshape(64, 64, 3)

    background = np.array([32, 32, 36])
    small = np.array(Image.fromarray(rgb).resize((64, 64), Image.Resampling.BOX)).astype(int)

    def difference(view: np.ndarray) -> tuple[float, float]:
        covered = np.abs(view - background).max(-1) > 3
        return covered.mean(), np.abs(view - small)[covered].mean()

    covered, off = difference(seen())
    flipped = np.abs(seen()[::-1] - small).mean()
    assert covered > 0.5
    assert off < 12 < flipped  # of 255
    scene.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    turned = difference(seen())[1]
    assert turned > 2 * off
    page.keyboard.press("Home")
    assert difference(seen())[1] == pytest.approx(off)
    page.select_option("mf-view [data-part=shape]", "points")
    assert difference(seen())[0] > 0.5


def test_complete_gives_metres_everywhere(visitor: Any, server: SimpleNamespace) -> None:
    page = visitor()
    open_tab(page, "complete")
    choose(page, "complete", "image", "kitchen.png")
    choose(page, "complete", "depth", "kitchen_sparse.png")
    job = finish(page, "complete")
    metadata = check_files(server, page, job, "complete")
    assert metadata["depth"]["unit"] == "m"
    assert metadata["depth"]["valid_fraction"] > 0.5


@pytest.mark.parametrize("by", ["pointer", "keys"])
def test_inpaint_changes_what_was_painted_and_nothing_else(
    visitor: Any, server: SimpleNamespace, by: str
) -> None:
    page = visitor()
    open_tab(page, "inpaint")
    choose(page, "inpaint", "image", "street.png")
    page.wait_for_selector("#inpaint-paint mf-paint[data-state=ready]")
    canvas = page.locator("#inpaint-paint canvas")
    canvas.scroll_into_view_if_needed()
    if by == "pointer":
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5, steps=5)
        page.mouse.up()
    else:
        canvas.focus()
        for key in ("ArrowRight", "Space", "ArrowRight", "Space"):
            page.keyboard.press(key)
    assert "pink" in page.inner_text("#inpaint-paint output")
    page.fill("#inpaint-prompt textarea", "a red car")
    job = finish(page, "inpaint")
    check_files(server, page, job, "inpaint")
    made = np.array(Image.open(io.BytesIO(fetch(server, job, "rgb.png"))))
    given = np.array(Image.open(FOLDER / "street.png"))
    changed = (made != given).any(-1)
    assert changed[64, 64]
    assert not changed[:32].any()
    assert not changed[96:].any()


INPUTS = {
    "joint": {}, "i2d": {"image": "street.png"}, "d2i": {"depth": "street_depth.png"},
    "complete": {"image": "street.png", "depth": "street_sparse.png"}, "inpaint": {"image": "street.png"},
}  # fmt: skip


@pytest.mark.parametrize("task", INPUTS)
def test_every_tab_on_the_embedded_model(
    embedded_visitor: Any, embedded_server: SimpleNamespace, task: str
) -> None:
    page = embedded_visitor()
    open_tab(page, task)
    for field, name in INPUTS[task].items():
        choose(page, task, field, name)
    if task == "inpaint":
        page.wait_for_selector("#inpaint-paint mf-paint[data-state=ready]")
        page.locator("#inpaint-paint canvas").focus()
        page.keyboard.press("Space")
    page.fill(f"#{task}-prompt textarea", "a street with houses")
    page.click("text=How it is made >> visible=true")
    page.fill(f"#{task}-steps :is(input, textarea)", "4")
    job = finish(page, task)
    metadata = check_files(embedded_server, page, job, task)
    assert metadata["provenance"]["model"]["name"] == "lowpoly"
    depth = np.load(io.BytesIO(fetch(embedded_server, job, "depth.npy")))
    picture = np.array(Image.open(io.BytesIO(fetch(embedded_server, job, "rgb.png"))))
    assert depth.shape == picture.shape[:2] == (128, 128)
    assert picture.std() > 5  # not one colour
    assert np.ptp(depth[depth > 0]) > 0.1


def test_previews_of_both_pictures_and_cancel(visitor: Any, server: SimpleNamespace) -> None:
    page = visitor()
    page.fill("#joint-prompt textarea", "slow")
    page.click("text=How it is made >> visible=true")
    page.fill("#joint-steps :is(input, textarea)", "100")
    page.fill("#joint-width :is(input, textarea)", "512")
    page.fill("#joint-height :is(input, textarea)", "512")
    page.click("#joint-run")
    page.wait_for_selector(".mf-previews img")
    sizes = page.eval_on_selector_all(".mf-previews img", "images => images.map(i => i.naturalWidth)")
    assert len(sizes) == 2
    assert re.match(r"Step \d+ of 100", page.inner_text(".mf-live [role=status]"))
    job = page.input_value("#job textarea, #job input")
    page.click("#cancel")
    page.wait_for_selector(".mf-note")
    assert page.inner_text(".mf-note") == "Cancelled"
    assert server.service.get(job).state == "cancelled"
    assert page.is_hidden("#cancel")


def test_the_link_of_settings_repeats_the_result(visitor: Any, server: SimpleNamespace) -> None:
    page = visitor()
    page.fill("#joint-prompt textarea", "a tree & <b>two</b> houses")
    page.click("text=How it is made >> visible=true")
    page.fill("#joint-log2_alpha :is(input, textarea)", "-2.5")
    page.fill("#joint-steps :is(input, textarea)", "3")
    first = finish(page, "joint")
    link = page.get_attribute(".mf-links a[href^='?settings=']", "href")
    again = visitor("/" + link)
    again.wait_for_function("document.querySelector('#joint-prompt textarea').value.startsWith('a tree')")
    second = finish(again, "joint")
    assert first != second
    for name in ("rgb.png", "depth.npy"):
        assert fetch(server, first, name) == fetch(server, second, name)
    provenance = json.loads(fetch(server, second, "metadata.json"))["provenance"]
    assert (provenance["log2_alpha"], provenance["steps"]) == (-2.5, 3)


def test_a_run_goes_on_without_its_page(visitor: Any, server: SimpleNamespace) -> None:
    page = visitor()
    page.fill("#joint-prompt textarea", "left alone")
    page.click("text=How it is made >> visible=true")
    page.fill("#joint-steps :is(input, textarea)", "60")
    page.fill("#joint-width :is(input, textarea)", "384")
    page.fill("#joint-height :is(input, textarea)", "384")
    page.click("#joint-run")
    page.wait_for_selector(".mf-live")
    page.wait_for_function("document.querySelector('#job :is(input, textarea)').value.length == 32")
    job = page.input_value("#job :is(input, textarea)")
    page.goto("about:blank")
    back = visitor(f"/?job={job}", context=page.context)
    back.wait_for_selector(".mf-live, .mf-done")
    back.wait_for_selector("mf-view[data-state=ready]")
    assert back.get_attribute(".mf-done", "data-job") == job
    assert back.query_selector(f".mf-history a[href='?job={job}']") is not None


def test_results_are_remembered_and_opened_again(visitor: Any, server: SimpleNamespace) -> None:
    page = visitor()
    page.fill("#joint-prompt textarea", "first")
    job = finish(page, "joint")
    page.wait_for_selector(".mf-history a")
    page.reload()
    page.wait_for_selector(".mf-history a")
    page.wait_for_timeout(1500)  # a later handler must not empty the list again
    page.click(".mf-history a")
    page.wait_for_selector("mf-view[data-state=ready]")
    assert page.get_attribute(".mf-done", "data-job") == job
    assert page.input_value("#joint-prompt textarea") == "first"
    stranger = visitor()
    assert stranger.query_selector(".mf-history a") is None


def test_examples_fill_the_form(visitor: Any) -> None:
    page = visitor()
    page.click("#joint-examples >> text=castle")
    page.wait_for_function("document.querySelector('#joint-prompt textarea').value.includes('castle')")
    open_tab(page, "i2d")
    page.locator("#i2d-examples img").first.click()
    page.wait_for_selector("#i2d-image img")


def test_errors_are_one_friendly_line(visitor: Any, tmp_path: Path) -> None:
    page = visitor()
    open_tab(page, "i2d")
    page.click("#i2d-run")
    page.wait_for_selector(".mf-error[role=alert]")
    assert "Image is missing; add a picture" in page.inner_text(".mf-error")
    open_tab(page, "d2i")
    wrong = tmp_path / "wrong.npy"
    wrong.write_bytes(b"\x93NUMPY nonsense")
    page.set_input_files("#d2i-depth input[type=file]", str(wrong))
    page.wait_for_selector("#d2i-depth .file-preview")
    page.click("#d2i-run")
    page.wait_for_function("document.querySelector('.mf-error')?.innerText.includes('epth')")
    text = page.inner_text(".mf-error")
    assert "/" not in text.replace("and/or", "")
    assert "Traceback" not in text
    broken = visitor("/?settings=" + quote("{nonsense"))
    broken.wait_for_selector(".mf-error")
    assert "JSON" in broken.inner_text(".mf-error")
    gone = visitor("/?job=" + "0" * 32)
    gone.wait_for_selector(".mf-error")
    assert "no such job" in gone.inner_text(".mf-error")


def test_a_prompt_is_never_markup(visitor: Any) -> None:
    page = visitor()
    page.fill("#joint-prompt textarea", '<img src=x onerror="window.hacked=1">\'"')
    finish(page, "joint")
    assert "onerror" in page.inner_text("figcaption")
    page.wait_for_selector(".mf-history a")
    assert page.evaluate("window.hacked") is None
    assert page.query_selector("img[src=x]") is None


def test_keyboard_alone_makes_a_result(visitor: Any) -> None:
    page = visitor()
    page.focus("#joint-prompt textarea")
    page.keyboard.type("by keys")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "joint-run":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("mf-view[data-state=ready]")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset?.part") == "divider":
            break
    before = page.locator("mf-view [data-part=canvas]").evaluate("c => c.toDataURL()")
    page.keyboard.press("ArrowRight")
    assert page.locator("mf-view [data-part=canvas]").evaluate("c => c.toDataURL()") != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width(visitor: Any, scheme: str) -> None:
    page = visitor(viewport=PHONE, color_scheme=scheme, has_touch=True, is_mobile=True)
    page.fill("#joint-prompt textarea", "on a phone")
    finish(page, "joint")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for part in ("#joint-run", "mf-view [data-part=canvas]", "mf-view [data-mode=solid]"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
        assert box["height"] >= 34  # pixels: what a finger hits
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    shade = [float(part) for part in re.findall(r"[\d.]+", colour)[:3]]
    assert (np.mean(shade) < 100) == (scheme == "dark")
