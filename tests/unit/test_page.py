"""The parts of the page that need no browser: depth for the viewer, HTML, settings, forms."""

from __future__ import annotations

import base64
import json
import zlib
from urllib.parse import unquote

import numpy as np
import pytest

pytest.importorskip("pydantic")
pytest.importorskip("peewee")

from modality_forcing.errors import UserError
from modality_forcing.server.page import result
from modality_forcing.server.page.controls import CONTROLS, HELP, TABS, Form, parse_settings
from modality_forcing.server.page.examples import EXAMPLES, FOLDER
from modality_forcing.server.page.visit import REMEMBERED, _ids
from modality_forcing.server.tasks import TASKS
from modality_forcing.server.views import FileView, ItemView, JobView, ProgressView


def unpack(depth: np.ndarray) -> np.ndarray:
    """As the browser does."""
    text, near, far = result.pack_depth(depth)
    codes = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u2").reshape(depth.shape).astype(float)
    return np.where(codes == 0, 0.0, near * (far / near) ** ((codes - 1) / result.LEVELS))


def test_depth_for_the_viewer_is_nearly_exact() -> None:
    depth = np.geomspace(0.05, 500.0, 64 * 48).reshape(64, 48).astype(np.float32)
    found = unpack(depth)
    assert np.abs(found / depth - 1).max() < 0.0001
    assert (found[0, 0], found[-1, -1]) == pytest.approx((0.05, 500.0), rel=1e-6)


def test_depth_for_the_viewer_without_depth_or_without_range() -> None:
    assert not unpack(np.array([[0.0, -1.0, np.nan, np.inf]])).any()
    assert unpack(np.array([[0.0, 3.0], [3.0, 3.0]])) == pytest.approx(np.array([[0, 3], [3, 3]]))


def job(**changes: object) -> JobView:
    files = [FileView(name="depth.npy", bytes=1234, url="/v1/jobs/1/results/0/depth.npy")]
    values = {
        "id": "0" * 32, "task": "joint", "model": "m", "state": "running", "created": 1.0, "started": 2.0,
        "finished": None, "expires": None, "ahead": None, "progress": ProgressView(step=3, steps=9),
        "error": None, "notices": [], "request": {"task": "joint", "prompt": "p"},
        "items": [ItemView(index=0, prompt="<script>alert('x')</script>", seed=1, files=files)],
    }  # fmt: skip
    return JobView(**{**values, **changes})


def test_what_users_wrote_is_text() -> None:
    for html in (
        result.history_html([job(state="done"), job()]),
        result.note_html("<script>"),
        result.running_html(job(), {"rgb": "'><script>", "depth": ""}),
    ):
        assert "<script" not in html


def test_waiting_and_progress_are_said() -> None:
    assert "Waiting, 4 before" in result.running_html(job(state="queued", ahead=4), None)
    assert "Next in line" in result.running_html(job(state="queued", ahead=0), None)
    html = result.running_html(job(), None)
    assert "Step 3 of 9" in html
    assert "max='9' value='3'" in html


def test_the_link_holds_the_settings() -> None:
    settings = {"task": "joint", "prompt": 'ünï "&#', "seed": 2**53}
    link = result.settings_link(settings)
    assert link.startswith("?settings=")
    assert not set(link[10:]) & set("\"'<>&# ")
    assert parse_settings(unquote(link[10:]), TASKS) == ("joint", settings)


@pytest.mark.parametrize("text", ["", "no", "[1]", '{"task": "rm"}', "[" * 100_000, '{"task": ["joint"]}'])
def test_other_settings_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="settings"):
        parse_settings(text, TASKS)


def test_every_task_and_option_is_on_the_page() -> None:
    for task in TASKS.values():
        assert task.name in TABS
        assert task.name in HELP
        assert set(task.options) <= set(CONTROLS)
        assert EXAMPLES[task.name]


def test_examples_exist_and_fit_together() -> None:
    from modality_forcing.io.depth_files import read_depth
    from modality_forcing.io.images import read_image

    values = {value for rows in EXAMPLES.values() for row in rows for value in row.values()}
    names = {value for value in values if value.endswith(".png")}
    assert names == {path.name for path in FOLDER.iterdir()}
    for scene in ("street", "kitchen"):
        picture = read_image(FOLDER / f"{scene}.png").pixels
        full, sparse = (read_depth(FOLDER / f"{scene}_{kind}.png") for kind in ("depth", "sparse"))
        assert full.unit == sparse.unit == "m"
        assert picture.shape[:2] == full.depth.shape == sparse.depth.shape
        assert 0.01 < sparse.valid.mean() < 0.05 < 0.5 < full.valid.mean()
        assert np.allclose(sparse.depth[sparse.valid], full.depth[sparse.valid], rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("seed", " 7 ", 7), ("seed", "", None), ("guidance", "2.5", 2.5), ("log2_alpha", "none", "none"),
        ("log2_alpha", "-3", -3.0), ("refine_depth", "no", False), ("sor", "", None),
        ("blend", "smooth", "smooth"),
    ],
)  # fmt: skip
def test_controls_read_and_show(name: str, given: str, expected: object) -> None:
    control = CONTROLS[name]
    assert control.read(given) == expected
    assert control.read(control.show(expected)) == expected


@pytest.mark.parametrize(
    ("name", "given"), [("seed", "1.5"), ("steps", "many"), ("log2_alpha", "left"), ("fov_x", "°")]
)
def test_controls_refuse_in_words(name: str, given: str) -> None:
    with pytest.raises(UserError, match="right is"):
        CONTROLS[name].read(given)


def test_a_form_asks_for_its_files() -> None:
    form = Form(TASKS["i2d"], {"image": object(), "prompt": object()})
    with pytest.raises(UserError, match="image is missing; add a picture"):
        form.read([None, "x"])
    painted = Form(TASKS["inpaint"], {"image": object(), "prompt": object()}, {"mask": object()})
    with pytest.raises(UserError, match="nothing is painted"):
        painted.read([str(FOLDER / "street.png"), "x", ""])
    address = "data:image/png;base64," + base64.b64encode(b"a picture").decode()
    fields, uploads = painted.read([str(FOLDER / "street.png"), "x", address])
    assert fields == {"prompt": "x"}
    assert uploads["mask"] == [b"a picture"]


def test_a_browser_may_remember_anything() -> None:
    good = "0123456789abcdef" * 2
    assert _ids([good, "../x", 3, None, good.upper(), good + "0"]) == [good]
    assert _ids("x") == _ids(None) == []
    assert len(_ids([good] * 1000)) == REMEMBERED


def test_sizes_are_for_people() -> None:
    assert [result.size_text(n) for n in (999, 1500, 2_500_000)] == ["999 bytes", "2 kB", "2.5 MB"]


def test_scripts_hold_no_address_of_elsewhere() -> None:
    from modality_forcing.server.page.build import STATIC, head_html

    for path in STATIC.iterdir():
        assert "http" not in path.read_text(encoding="utf-8"), path.name
    head = head_html()
    assert head.count("<script>") == head.count("</script>") == 4
    tables = json.loads(head[head.index("{") : head.index(";</script>")])
    assert len(tables["magma"]) == 256
