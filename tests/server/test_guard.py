"""Each wall around the decoding of uploads by itself: the others would hide a hole in one."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import npy, png

from modality_forcing.errors import UserError
from modality_forcing.server.guard import decode, kind_of

PIXELS = np.full((32, 40, 3), 90, np.uint8)


def as_format(name: str) -> bytes:
    """A valid picture in some format."""
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, name)
    return stream.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to decode in; the process comes back from it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def question(folder: Path, kind: str, data: bytes, **changes: object) -> dict[str, object]:
    """A request to the guard."""
    (folder / "the-upload").write_bytes(data)
    return {
        "kind": kind,
        "folder": str(folder),
        "file": "the-upload",
        "out": "0.npy",
        "max_pixels": 10**4,
        **changes,
    }


@pytest.mark.parametrize(
    "name", ["BMP", "GIF", "PPM", "TGA", "ICO", "EPS", "DDS", "SGI", "PCX", "JPEG2000", "PDF"]
)
def test_other_formats_are_not_recognised(name: str) -> None:
    assert kind_of(as_format(name)) is None


@pytest.mark.parametrize(
    ("name", "ending"), [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("TIFF", ".tif")]
)
def test_the_first_bytes_decide(here: Path, name: str, ending: str) -> None:
    assert kind_of(as_format(name)) == ending
    found = decode(question(here, "image", as_format(name)))
    assert found["shape"] == [32, 40]
    pixels = np.load(here / "0.npy", allow_pickle=False)
    assert np.abs(pixels.astype(int) - PIXELS).max() <= 3


@pytest.mark.parametrize(
    ("kind", "data"), [("image", npy(PIXELS)), ("depth", as_format("JPEG")), ("mask", npy(PIXELS))]
)
def test_a_format_of_another_field_is_refused(here: Path, kind: str, data: bytes) -> None:
    with pytest.raises(UserError, match="right is a"):
        decode(question(here, kind, data, shape=(32, 40)))


def test_sizes_are_refused_by_the_header(here: Path) -> None:
    whole = png(np.zeros((101, 100, 3), np.uint8))
    for data in (whole, whole[:60]):  # without the pixels the answer is the same: they were not looked at
        with pytest.raises(UserError, match="million"):
            decode(question(here, "image", data))
    deep = png(np.ones((101, 100), np.uint16))
    with pytest.raises(UserError, match="million"):
        decode(question(here, "depth", deep[:60]))
    with pytest.raises(UserError, match="million"):
        decode(question(here, "depth", npy(np.ones((101, 100), np.float32))))


WALLS = """
import io, sys
from PIL import Image
from modality_forcing.server.guard import restrict
restrict()
import numpy as np
pixels = np.zeros((8, 8, 3), np.uint8)
for name in {formats!r}:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, name)
    stream.seek(0)
    try:
        Image.open(stream)
        print("opened", name)
    except Image.UnidentifiedImageError:
        pass
try:
    bytearray(5 * 2**30)
    print("memory")
except MemoryError:
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is bounded on Linux")
def test_the_process_shuts_itself_in() -> None:
    code = WALLS.format(formats=("BMP", "GIF", "PPM", "EPS", "ICO", "TGA"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
