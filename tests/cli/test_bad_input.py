"""Every kind of bad input: exit code 2, exactly one clear line, no files, and no model loaded for nothing."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_files import cut_jpeg, image, npy, png_bomb, text_file
from cli_files import model as broken_model
from cli_running import Result, tree
from PIL import Image

Arguments = list[object]
AUTOENCODER = '{"stage": "autoencoder"}'
NAN = np.full((48, 64), np.nan, np.float32)
RAMP = np.repeat(np.linspace(4.0, 1.0, 48, dtype=np.float32)[:, None], 64, axis=1)


def joint(*more: object) -> Arguments:
    """A right joint command with one wrong option."""
    return ["joint", "--prompt", "a red house", *more]


def i2d(*images: object) -> Arguments:
    """i2d of these files."""
    return ["i2d", *(word for path in images for word in ("--image", path))]


def d2i(depth: object, *more: object) -> Arguments:
    """d2i of this file."""
    return ["d2i", "--prompt", "a house", "--depth", depth, *more]


def train(folder: Path, recipe: str, *more: object) -> Arguments:
    """Training by a recipe of this text."""
    return ["train", text_file(folder / "a.json", recipe), *more]


def ramp(folder: Path) -> Path:
    """A right depth map."""
    return npy(folder / "a.npy", RAMP)


# name: (what the line must say, how the command line is made from an empty folder)
CASES: dict[str, tuple[str, Callable[[Path], Arguments]]] = {
    # verbs and options
    "unknown verb": ("No such command", lambda _: ["paint"]),
    "unknown option": ("No such option", lambda _: joint("--colour", "blue")),
    "option of another verb": ("No such option", lambda p: [*i2d(image(p / "a.png")), "--depth", "b.npy"]),
    "option without value": ("requires an argument", lambda _: joint("--seed")),
    "surplus argument": ("unexpected extra argument", lambda _: joint("kitchen")),
    # prompts
    "no prompt": ("--prompt is missing", lambda _: ["joint"]),
    "no prompt in d2i": ("--prompt is missing", lambda p: ["d2i", "--depth", ramp(p)]),
    "prompt of 100 kB": ("102400 characters", lambda _: ["joint", "--prompt", "a" * 102_400]),
    "control character": ("control character U+0007", lambda _: ["joint", "--prompt", "a \x07 bell"]),
    "null character": ("control character U+0000", lambda _: ["joint", "--prompt", "a\0b"]),
    "prompt not UTF-8": ("not valid UTF-8", lambda _: ["joint", "--prompt", "a \udcff house"]),
    "prompt file missing": ("does not exist", lambda _: ["joint", "--prompt-file", "no.txt"]),
    "prompt file empty": ("is empty", lambda p: ["joint", "--prompt-file", text_file(p / "a.txt", "")]),
    "prompt file blank": ("no prompt", lambda p: ["joint", "--prompt-file", text_file(p / "a.txt", "\n \n")]),
    "prompt file binary": ("not UTF-8", lambda p: ["joint", "--prompt-file", image(p / "a.jpg")]),
    "prompt file a folder": ("is a folder", lambda p: ["joint", "--prompt-file", p]),
    "prompts and images differ": (
        "2 prompts for 3 images",
        lambda p: [*i2d(*(image(p / f"{i}.png") for i in range(3))), "-p", "a", "-p", "b"],
    ),
    # numbers
    "steps 0": ("--steps is 0", lambda _: joint("--steps", 0)),
    "steps negative": ("--steps is -3", lambda _: joint("--steps", -3)),
    "steps huge": ("--steps is", lambda _: joint("--steps", 10**12)),
    "steps a fraction": ("--steps", lambda _: joint("--steps", 2.5)),
    "guidance nan": ("--guidance is nan", lambda _: joint("--guidance", "nan")),
    "guidance inf": ("--guidance is inf", lambda _: joint("--guidance", "inf")),
    "guidance negative": ("--guidance is -1", lambda _: joint("--guidance", -1)),
    "depth guidance negative": (
        "--guidance-depth is -1",
        lambda p: ["d2i", "-p", "", "--depth", p / "none.npy", "--guidance-depth", -1],
    ),
    "guidance along the image": (
        "--guidance-parallel is 1.5",
        lambda _: joint("--guidance-parallel", 1.5),
    ),
    "guidance text": ("'strong'", lambda _: joint("--guidance", "strong")),
    "seed negative": ("--seed is -1", lambda _: joint("--seed", -1)),
    "seed text": ("'lucky'", lambda _: joint("--seed", "lucky")),
    "seed huge": ("--seed is", lambda _: joint("--seed", 2**63)),
    "last seed huge": ("--seed is", lambda _: joint("--seed", 2**63 - 2, "--num-images", 5)),
    "no images wanted": ("--num-images is 0", lambda _: joint("--num-images", 0)),
    "size one number": ("WIDTHxHEIGHT", lambda _: joint("--size", "512")),
    "size text": ("WIDTHxHEIGHT", lambda _: joint("--size", "bigxsmall")),
    "size negative": ("WIDTHxHEIGHT", lambda _: joint("--size", "-64x64")),
    "size zero": ("at least", lambda _: joint("--size", "0x0")),
    "size tiny": ("at least", lambda _: joint("--size", "8x8")),
    "size huge": ("million pixels", lambda _: joint("--size", "100000x100000")),
    "size a strip": ("long to short", lambda _: joint("--size", "1024x16")),
    "size of one side huge": ("at most 4096", lambda _: joint("--size", "5000x1000")),
    "tilt nan": ("--log2-alpha is nan", lambda _: joint("--log2-alpha", "nan")),
    "tilt text": ("--log2-alpha is 'left'", lambda _: joint("--log2-alpha", "left")),
    "tilt huge": ("--log2-alpha is", lambda _: joint("--log2-alpha", 1e9)),
    "edge ratio nan": ("--edge-rtol is nan", lambda _: joint("--edge-rtol", "nan")),
    "edge ratio negative": ("--edge-rtol is -1", lambda _: joint("--edge-rtol", -1)),
    "edge radius negative": ("--edge-radius is -1", lambda _: joint("--edge-radius", -1)),
    "edge radius huge": ("--edge-radius is 4096", lambda _: joint("--edge-radius", 4096)),
    "edge radius text": ("'wide'", lambda _: joint("--edge-radius", "wide")),
    "no points": ("--max-points is 0", lambda _: joint("--max-points", 0)),
    # camera
    "fov 190": ("--fov-x is 190", lambda _: joint("--fov-x", 190)),
    "fov 0": ("--fov-y is 0", lambda _: joint("--fov-y", 0)),
    "fov nan": ("--fov-x is nan", lambda _: joint("--fov-x", "nan")),
    "fov and intrinsics": ("not both", lambda _: joint("--fov-x", 60, "--intrinsics", "60,60,32,24")),
    "intrinsics missing": ("does not exist", lambda _: joint("--intrinsics", "camera.json")),
    "three intrinsics": ("3 numbers", lambda _: joint("--intrinsics", "500,500,320")),
    "intrinsics nan": ("fx is nan", lambda _: joint("--intrinsics", "nan,60,32,24", "--size", "64x48")),
    "intrinsics negative": ("fx is -60", lambda _: joint("--intrinsics", "-60,60,32,24", "--size", "64x48")),
    "intrinsics normalised": ("normalised", lambda _: joint("--size", "64x48", "--intrinsics", "1,1,.5,.5")),
    "intrinsics no JSON": ("not valid JSON", lambda p: joint("--intrinsics", text_file(p / "k.json", "{"))),
    "intrinsics without camera": (
        "holds no camera",
        lambda p: joint("--intrinsics", text_file(p / "k.json", '{"a": 1}')),
    ),
    "skewed matrix": (
        "skew",
        lambda p: joint("--size", "64x48", "--intrinsics", text_file(p / "k.txt", "60 5 32\n0 60 24\n0 0 1")),
    ),
    "camera of another shape": (
        "another shape",
        lambda p: [
            *i2d(image(p / "a.png")), "--intrinsics",
            text_file(p / "k.json", '{"fx": 60, "fy": 60, "cx": 50, "cy": 200, "width": 100, "height": 400}'),
        ],
    ),
    # device and model name
    "unknown device": ("--device is 'tpu'", lambda _: joint("--device", "tpu")),
    "float16": ("float16", lambda _: joint("--dtype", "float16")),
    "unknown dtype": ("--dtype is 'int4'", lambda _: joint("--dtype", "int4")),
    "empty model name": ("--model is ''", lambda _: joint("--model", "")),
    # pictures
    "no image": ("--image is missing", lambda _: ["i2d"]),
    "image missing": ("does not exist", lambda _: i2d("no.png")),
    "image name empty": ("name of a file", lambda _: i2d("")),
    "image name with null": ("name of a file", lambda _: i2d("a\0b")),
    "image name too long": ("too long", lambda _: i2d("a" * 5000)),
    "image name with newline": ("does not exist", lambda _: i2d("a\nb\x1b[31m")),
    "folder without images": ("without .png", lambda p: i2d(p)),
    "image empty": ("is empty", lambda p: i2d(text_file(p / "a.png", ""))),
    "text named .png": ("is text", lambda p: i2d(text_file(p / "a.png"))),
    "svg named .png": ("SVG", lambda p: i2d(text_file(p / "a.png", "<svg xmlns=''></svg>"))),
    "cut JPEG": ("cut short", lambda p: i2d(cut_jpeg(p / "a.jpg"))),
    "noise named .jpg": ("not an image", lambda p: i2d(text_file(p / "a.jpg", bytes(range(256))))),
    "PNG bomb": ("million pixels", lambda p: i2d(png_bomb(p / "a.png"))),
    "image of 8 pixels": ("at least 16", lambda p: i2d(image(p / "a.png", 8, 8))),
    "image a strip": ("long to short", lambda p: i2d(image(p / "a.png", 400, 20))),
    "floating point image": ("floating point", lambda p: i2d(_float_tiff(p / "a.tif"))),
    "one of two missing": ("does not exist", lambda p: i2d(image(p / "a.png"), "b.png")),
    # depth
    "no depth": ("--depth is missing", lambda _: ["d2i", "--prompt", "a"]),
    "depth missing": ("does not exist", lambda _: d2i("no.npy")),
    "depth a JPEG": ("unknown ending", lambda p: d2i(image(p / "a.jpg"))),
    "depth all NaN": ("no valid pixel", lambda p: d2i(npy(p / "a.npy", NAN))),
    "depth all zero": ("no valid pixel", lambda p: d2i(npy(p / "a.npy", 0 * RAMP))),
    "depth negative": ("no valid pixel", lambda p: d2i(npy(p / "a.npy", -RAMP))),
    "depth of rank 1": ("(height, width)", lambda p: d2i(npy(p / "a.npy", RAMP[0]))),
    "depth of rank 4": ("(height, width)", lambda p: d2i(npy(p / "a.npy", np.ones((2, 3, 48, 64))))),
    "depth a pickle": ("no valid .npy", lambda p: d2i(npy(p / "a.npy", np.array([[{}, []]], dtype=object)))),
    "depth of text": ("holds", lambda p: d2i(npy(p / "a.npy", np.full((48, 64), "far")))),
    "depth empty": ("is empty", lambda p: d2i(text_file(p / "a.npy", ""))),
    "depth cut": ("no valid .npy", lambda p: d2i(_cut(ramp(p)))),
    "depth no npz": ("no valid .npz", lambda p: d2i(text_file(p / "a.npz"))),
    "depth two arrays": ("2 arrays", lambda p: d2i(_npz(p / "a.npz"))),
    "depth no tiff": ("no valid TIFF", lambda p: d2i(text_file(p / "a.tif"))),
    "depth no exr": ("no valid EXR", lambda p: d2i(text_file(p / "a.exr"))),
    "depth PNG bomb": ("million pixels", lambda p: d2i(png_bomb(p / "a.png"), "--depth-kind", "depth")),
    "depth in colours": ("colour picture", lambda p: d2i(image(p / "a.png"), "--depth-kind", "depth")),
    "depth a palette": ("palette", lambda p: d2i(_palette(p / "a.png"), "--depth-kind", "depth")),
    "depth or disparity": ("--depth-kind", lambda p: d2i(image(p / "a.png", mode="L"))),
    "depth kind unknown": ("--depth-kind is 'far'", lambda p: d2i(ramp(p), "--depth-kind", "far")),
    "depth scale 0": ("--depth-scale is 0", lambda p: d2i(ramp(p), "--depth-scale", 0)),
    "depth scale nan": ("--depth-scale is nan", lambda p: d2i(ramp(p), "--depth-scale", "nan")),
    "mask of another size": (
        "its image is 64x48",
        lambda p: d2i(ramp(p), "--mask", image(p / "m.png", 32, 32, "L")),
    ),
    "mask missing": ("does not exist", lambda p: d2i(ramp(p), "--mask", "no.png")),
    "mask black": ("black everywhere", lambda p: d2i(ramp(p), "--mask", _mask(p / "m.png", 0))),
    "mask of holes only": (
        "no valid pixel",
        lambda p: d2i(
            npy(p / "a.npy", np.where(np.arange(64) < 32, RAMP, 0)), "--mask", _mask(p / "m.png", 255, 32)
        ),
    ),
    "masks and maps differ": (
        "2 masks for 3",
        lambda p: [
            *d2i(ramp(p), "-d", p / "a.npy", "-d", p / "a.npy"), "-m", "m.png", "-m", "n.png",
        ],
    ),
    # where results go
    "out is a file": ("is a file", lambda p: joint("--out", text_file(p / "a"))),
    "out below a file": ("not a folder", lambda p: joint("--out", text_file(p / "a") / "b")),
    "out empty": ("--out is ''", lambda _: joint("--out", "")),
    "out too long": ("too long", lambda _: joint("--out", "a" * 5000)),
    # other verbs
    "recipe unknown": ("unknown recipe", lambda _: ["train", "paint/houses"]),
    "recipe missing": ("does not exist", lambda _: ["train", "no.json"]),
    "recipe no JSON": ("cannot be read", lambda p: train(p, "{")),
    "recipe unknown key": ("unknown key", lambda p: train(p, '{"colour": 1}')),
    "setting unknown": (
        "unknown key", lambda p: train(p, "{}", "optim.colour=3")
    ),
    "setting without value": ("key=value", lambda p: train(p, "{}", "steps")),
    "setting no number": ("steps", lambda p: train(p, "{}", "steps=many")),
    "training data missing": ("no folder of shards", lambda p: train(p, AUTOENCODER, f"data={p}")),
    "convert nothing": ("no-model", lambda _: ["convert", "no-model", "new"]),
    "convert to unknown layout": ("unknown layout", lambda p: ["convert", p, "new", "--to", "onnx"]),
    "convert onto something": (
        "exists",
        lambda p: ["convert", p, text_file(p / "a").parent, "--to", "ours"],
    ),
    "data of unknown split": ("unknown split", lambda _: ["data", "make", "new", "--split", "all"]),
    "data of nothing": ("--count is 0", lambda _: ["data", "make", "new", "--count", 0]),
    "data of huge pictures": ("--size is", lambda _: ["data", "make", "new", "--size", 100_000]),
    "inspect nothing": ("is no folder", lambda _: ["data", "inspect", "no-folder"]),
    "inspect an empty folder": ("holds no manifest.json", lambda p: ["data", "inspect", p]),
    "inspect into a text": (".png", lambda p: ["data", "inspect", p, "--out", "sheet.txt"]),
}  # fmt: skip


def _float_tiff(path: Path) -> Path:
    Image.fromarray(RAMP).save(path)
    return path


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-500])
    return path


def _npz(path: Path) -> Path:
    np.savez(path, near=RAMP, far=RAMP)
    return path


def _palette(path: Path) -> Path:
    Image.open(image(path)).convert("P").save(path)
    return path


def _mask(path: Path, value: int, first_column: int = 0) -> Path:
    values = np.zeros((48, 64), np.uint8)
    values[:, first_column:] = value
    Image.fromarray(values).save(path)
    return path


def check(result: Result, says: str) -> None:
    """Exit code 2 and one line that says ``says``."""
    assert result.code == 2, result
    assert result.out == ""
    assert len(result.errors) == 1, result.err
    line = result.errors[0]
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) < 700
    assert says.lower() in line.lower(), line
    assert "traceback" not in line.lower()


def test_there_are_enough() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str, mf: Callable[..., Result], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An import of the pipeline would raise: all of this is found before anything is loaded.
    monkeypatch.setitem(sys.modules, "modality_forcing.pipeline", None)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    says, make = CASES[name]
    arguments = make(inputs)
    before = tree(tmp_path)
    check(mf(*arguments), says)
    assert tree(tmp_path) == before
    assert list(work.iterdir()) == []


MODEL_SAYS = {
    "no config": "config.json", "config no json": "JSON", "config unknown key": "colour",
    "config wrong size": "rope_axes", "config no table": "config.json", "missing tensor": "lacks 1",
    "extra tensor": "surplus", "misshapen tensor": "misshapen", "cut weights": "damaged",
    "random weights": "damaged", "empty weights": "damaged", "pickled weights": "pickle",
    "bare pickle": "pickle", "no transformer": "no transformer", "no autoencoder": "no autoencoder",
}  # fmt: skip


@pytest.mark.parametrize("fault", MODEL_SAYS)
def test_bad_model(
    fault: str, mf: Callable[..., Result], work: Path, tmp_path: Path, tiny_model: Path
) -> None:
    folder = broken_model(tiny_model, tmp_path / "model", fault)
    before = tree(tmp_path)
    check(mf(*joint("--model", folder, "--device", "cpu")), MODEL_SAYS[fault])
    assert tree(tmp_path) == before
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("no-such-model", ["--model", "no-such-model"]),
        ("is empty", ["--model", "EMPTY"]),
        ("cuda", ["--device", "cuda:99"]),
    ],
)
def test_bad_source(
    says: str, options: list[str], mf: Callable[..., Result], work: Path, tmp_path: Path, tiny_model: Path
) -> None:
    empty = tmp_path / "empty-model"
    empty.mkdir()
    words = [str(empty) if word == "EMPTY" else word for word in options]
    more = [] if "--model" in options else ["--model", tiny_model]
    check(mf(*joint(*more, *words)), "empty-model" if "EMPTY" in options else says)
    assert list(work.iterdir()) == []


def test_text_encoder_that_does_not_fit(mf: Callable[..., Result], work: Path, tiny_model: Path) -> None:
    check(mf(*joint("--model", tiny_model, "--text-encoder", "somewhere")), "text")
    assert list(work.iterdir()) == []


def test_read_only_output(mf: Callable[..., Result], work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulated, because the superuser may write anywhere.
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    check(mf(*joint()), "read-only")
    assert list(work.iterdir()) == []


def test_disk_full(
    mf: Callable[..., Result], work: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", refuse)
    check(mf(*joint("--model", tiny_model, "--steps", 1, "--device", "cpu")), "disk is full")
    assert tree(work) == set()


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("--steps is 0", ["joint", "--prompt", "a", "--steps", "0"]),
        ("does not exist", ["i2d", "--image", "no.png"]),
        ("No such command", ["paint"]),
    ],
)
def test_from_outside(says: str, words: list[str], work: Path) -> None:
    program = [
        sys.executable,
        "-c",
        "import sys; from modality_forcing.cli.main import main; sys.exit(main())",
    ]
    done = subprocess.run([*program, *words], capture_output=True, text=True, timeout=120, check=False)
    check(Result(done.returncode, done.stdout, done.stderr), says)
    assert list(work.iterdir()) == []
