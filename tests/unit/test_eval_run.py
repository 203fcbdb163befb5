"""Evaluating: rows, resuming, bad samples, ensembles, plug-ins, merged parts, and the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.evaluation import run as run_module
from modality_forcing.evaluation.datasets.common import EvalItem
from modality_forcing.evaluation.ensemble import combine
from modality_forcing.evaluation.metrics import score_depth
from modality_forcing.evaluation.predictors import (
    ConstantDepth,
    Ensemble,
    MeanDepth,
    PluginPredictor,
    Prediction,
    open_predictor,
)
from modality_forcing.evaluation.protocols import PROTOCOLS, Rules
from modality_forcing.evaluation.report import merge, write_report
from modality_forcing.evaluation.rows import ROWS, compare, read_rows, summarise
from modality_forcing.evaluation.run import Job, Shard, evaluate_depth

MOGE = PROTOCOLS["moge"]


class Toy:
    """Pictures whose depth stands in their red channel, so that a predictor can be right; some are broken."""

    kind, source, layout = "folder", "toy", "toy"

    def __init__(self, count: int = 7, broken: tuple[int, ...] = ()) -> None:
        self.names = [f"picture {i}" for i in range(count)]
        self.broken = broken
        self.reads = 0

    def read(self, index: int) -> EvalItem:
        self.reads += 1
        if index in self.broken:
            raise UserError(f"picture {index} is damaged")
        rng = np.random.default_rng(index)
        rgb = rng.integers(20, 255, (20, 24, 3), dtype=np.uint8)
        depth = rgb[..., 0].astype(np.float32) / 10
        depth[0, :5] = np.inf
        return EvalItem(self.names[index], rgb, depth, caption=f"number {index}")


class Reader:
    """Reads the red channel, with an error that comes from the seed."""

    name, promise, batch_size = "reader", "relative", 3

    def __init__(self, noise: float = 0.1) -> None:
        self.noise, self.facts = noise, {"noise": noise}
        self.asked: list[int] = []

    def predict(self, images, captions, seeds):
        self.asked += seeds
        found = []
        for image, seed in zip(images, seeds, strict=True):
            error = np.random.default_rng(seed).normal(size=image.shape[:2])
            found.append(Prediction((image[..., 0] * (1 + self.noise * error)).astype(np.float32)))
        return found


def job(data: Toy, predictor: object, **options: object) -> Job:
    return Job(data, predictor, MOGE, Rules(), ("scale", "affine"), **options)


def test_rows_are_what_the_metrics_say(tmp_path: Path) -> None:
    data, reader = Toy(), Reader()
    steps = []
    rows = evaluate_depth(job(data, reader, seed=5), tmp_path, lambda d, t: steps.append((d, t)))
    assert list(rows) == list(range(7)) and steps[0] == (0, 7) and steps[-1] == (7, 7)
    assert reader.asked == [5 + i for i in range(7)]
    item = data.read(4)
    (answer,) = Reader().predict([item.rgb], [""], [9])
    expected = score_depth(answer.depth, item.depth, alignment="affine")
    assert rows[4]["scores"]["affine"]["abs_rel"] == pytest.approx(expected.abs_rel, rel=1e-12)
    assert sum(rows[4]["error_histogram"]) == expected.num_valid == 20 * 24 - 5
    assert (tmp_path / "pictures" / rows[4]["picture"]).is_file()
    table = summarise(list(rows.values()))["affine"]["abs_rel"]
    values = [row["scores"]["affine"]["abs_rel"] for row in rows.values()]
    assert table["mean"] == pytest.approx(np.mean(values))
    assert table["error"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(7))


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    class Stops(Reader):
        def predict(self, images, captions, seeds):
            if 3 in seeds:
                raise KeyboardInterrupt
            return super().predict(images, captions, seeds)

    with pytest.raises(KeyboardInterrupt):
        evaluate_depth(job(Toy(), Stops()), tmp_path)
    before = read_rows(tmp_path)
    assert set(before) <= {0, 1, 2}
    with (tmp_path / ROWS).open("a") as stream:
        stream.write('{"index": 6, "na')  # what a crash leaves
    reader = Reader()
    rows = evaluate_depth(job(Toy(), reader), tmp_path)
    assert sorted(reader.asked) == [i for i in range(7) if i not in before]
    whole = evaluate_depth(job(Toy(), Reader()), tmp_path / "at-once")
    assert {i: r["scores"] for i, r in rows.items()} == {i: r["scores"] for i, r in whole.items()}
    again = Reader()
    evaluate_depth(job(Toy(), again), tmp_path)
    assert again.asked == []
    with pytest.raises(UserError, match="another predictor"):
        evaluate_depth(job(Toy(), Reader(0.2)), tmp_path)
    long = {"weights": {"a": "0" * 100, "b": "1" * 100}, "steps": 2}
    with pytest.raises(UserError, match=r"^it holds results of another p\.steps \(2, not 3\); wrong$"):
        compare({"p": long, "limit": 1}, {"p": {**long, "steps": 3}, "limit": 2}, "it holds", "wrong")
    with pytest.raises(UserError, match=r"p\.weights\.b \(\"1+, not null\)"):
        compare({"p": long}, {"p": {**long, "weights": {"a": "0" * 100}}}, "it holds", "wrong")
    with pytest.raises(UserError, match="another seed"):
        evaluate_depth(job(Toy(), Reader(), seed=1), tmp_path)


def test_bad_samples_are_listed_and_tried_again(tmp_path: Path) -> None:
    class Refuses(Reader):
        def predict(self, images, captions, seeds):
            if "number 5" in captions:
                raise UserError("too strange a picture")
            return super().predict(images, captions, seeds)

    class Nan(Refuses):
        def predict(self, images, captions, seeds):
            found = super().predict(images, captions, seeds)
            for answer, caption in zip(found, captions, strict=True):
                if caption == "number 6":
                    answer.depth[3, 3] = np.nan
            return found

    rows = evaluate_depth(job(Toy(broken=(1,)), Nan()), tmp_path)
    errors = {i: row["error"] for i, row in rows.items() if "error" in row}
    assert set(errors) == {1, 5, 6}
    assert "damaged" in errors[1] and "too strange" in errors[5] and "not finite on 1" in errors[6]
    results = write_report(tmp_path, rows)
    assert results["images"] == 4 and [bad["name"] for bad in results["bad"]] == [
        "picture 1",
        "picture 5",
        "picture 6",
    ]
    for name in ("report.md", "index.html"):
        assert "too strange a picture" in (tmp_path / name).read_text()
    rows = evaluate_depth(job(Toy(), Reader()), tmp_path)
    assert not any("error" in row for row in rows.values())
    with pytest.raises(
        UserError, match="none of 2 pictures could be measured; the first: picture 0 is damaged"
    ):
        write_report(tmp_path / "bad", evaluate_depth(job(Toy(2, (0, 1)), Reader()), tmp_path / "bad"))


def test_parts_merge_to_the_whole(tmp_path: Path) -> None:
    whole = evaluate_depth(job(Toy(), Reader()), tmp_path / "whole")
    expected = write_report(tmp_path / "whole", whole)
    for i in (1, 2, 3):
        part = tmp_path / f"part{i}"
        rows = evaluate_depth(job(Toy(), Reader(), shard=Shard(i, 3)), part)
        assert list(rows) == list(range(i - 1, 7, 3))
        write_report(part, rows)
    parts = [tmp_path / f"part{i}" for i in (3, 1, 2)]
    merged = merge(parts, tmp_path / "merged")
    assert merged["summary"] == expected["summary"] and merged["images"] == 7
    assert len(list((tmp_path / "merged" / "pictures").iterdir())) == 7
    with pytest.raises(UserError, match="is taken"):
        merge(parts, tmp_path / "merged")
    evaluate_depth(job(Toy(), Reader(0.3)), tmp_path / "other")
    with pytest.raises(UserError, match="another predictor"):
        merge([*parts, tmp_path / "other"], tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()
    line = json.loads((parts[0] / ROWS).read_text().splitlines()[0])
    line["scores"]["scale"]["abs_rel"] = 0.5
    (tmp_path / "part1" / ROWS).open("a").write(json.dumps(line | {"index": 2}) + "\n")
    with pytest.raises(UserError, match="other numbers"):
        merge(parts, tmp_path / "mixed")


def test_the_report_says_everything_and_loads_nothing(tmp_path: Path) -> None:
    rows = evaluate_depth(job(Toy(), Ensemble(Reader(), 3)), tmp_path)
    results = write_report(tmp_path, rows)
    assert results["settings"]["predictor"] == {"noise": 0.1, "ensemble": 3}
    assert results["versions"].keys() >= {"numpy", "torch", "modality_forcing"}
    text = (tmp_path / "report.md").read_text()
    for part in (
        "protocol: moge",
        "7 images",
        "cap none",
        "| affine |",
        "Spread of the ensemble",
        "exact L1",
    ):
        assert part in text, part
    page = (tmp_path / "index.html").read_text()
    assert page.count("<figure>") == 7 + 7 + 4 and "data:image/jpeg;base64," in page
    assert not re.search(r"(src|href)=(?!\"data:)", page) and "://" not in page
    json.loads((tmp_path / "results.json").read_text())
    pytest.importorskip("matplotlib")
    assert {p.name for p in tmp_path.glob("*.png")} == {"histogram.png", "errors.png", "reliability.png"}


def test_reading_and_measuring_run_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    threads = {}

    def note(name, function):
        def wrapped(*arguments):
            threads.setdefault(name, set()).add(threading.current_thread())
            return function(*arguments)

        return wrapped

    monkeypatch.setattr(run_module, "_read_all", note("read", run_module._read_all))
    monkeypatch.setattr(run_module, "_measure", note("measure", run_module._measure))
    evaluate_depth(job(Toy(), Reader()), tmp_path)
    assert len(threads["read"] | threads["measure"] | {threading.current_thread()}) == 3


def test_an_ensemble_is_better_than_its_members_and_knows_its_spread() -> None:
    item = Toy().read(0)
    members = Reader(0.3).predict([item.rgb] * 9, [""] * 9, range(9))
    # The members' scales differ, as those of relative depth do.
    scaled = [m.depth * (1 + i) for i, m in enumerate(members)]
    median, spread = combine(scaled, shift=False)
    alone = np.mean([score_depth(m, item.depth).abs_rel for m in scaled])
    assert score_depth(median, item.depth).abs_rel < 0.6 * alone
    assert 0.15 < float(spread.mean()) < 0.35  # the mean absolute deviation of 0.3 noise is about 0.24
    same, zero = combine(
        [3.0 * item.rgb[..., 0], 5.0 * item.rgb[..., 0], 0.1 * item.rgb[..., 0]], shift=False
    )
    assert float(zero.max()) < 1e-6 and score_depth(same, item.depth).abs_rel < 1e-5
    red = item.rgb[..., 0].astype(float)
    affine, zero = combine([red, 2 * red + 30, 0.5 * red + 9], shift=True)
    assert float(zero.max()) < 0.05 and score_depth(affine, item.depth, alignment="affine").abs_rel < 1e-5
    with pytest.raises(ValueError, match="one shape"):
        combine([red, red[:3]], shift=True)


def test_ensemble_gives_every_member_its_own_seed() -> None:
    reader = Reader()
    found = Ensemble(reader, 4).predict([Toy().read(i).rgb for i in (0, 1)], ["", ""], [10, 11])
    assert reader.asked == [40, 41, 42, 43, 44, 45, 46, 47] and len(found) == 2
    assert all(f.spread is not None and f.spread.shape == f.depth.shape for f in found)


def test_baselines_that_see_no_picture() -> None:
    images = [np.zeros((8, 12, 3), np.uint8)]
    assert (ConstantDepth().predict(images, [""], [0])[0].depth == 1).all()
    maps = [np.array([[2.0, 4.0], [np.inf, 0.0]]), np.array([[10.0, 20.0], [30.0, 0.0]])]
    mean = MeanDepth(maps, "toy")
    np.testing.assert_allclose(mean.depth, [[(2 / 3 + 0.5) / 2, (4 / 3 + 1) / 2], [1.5, 1.0]], rtol=1e-6)
    assert mean.predict(images, [""], [0])[0].depth.shape == (8, 12)
    with pytest.raises(UserError, match="draws nothing"):
        open_predictor("constant", {}, ensemble=2)


def test_plugins(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "def red(image): return image[..., 0] + 1\n"
        "def small(image): return image[:2, :2, 0]\n"
        "class Gain:\n"
        "    promise = 'metric'\n"
        "    def __init__(self, by='1'): self.by, self.facts = float(by), {'by': by}\n"
        "    def __call__(self, image, seed, caption): return image[..., 1] * self.by + seed + len(caption)\n"
        "class Odd:\n"
        "    promise = 'sure'\n"
        "    def __call__(self, image): return image\n"
    )
    image = np.full((4, 5, 3), 7, np.uint8)
    plain = PluginPredictor(f"{file}:red")
    assert plain.promise == "relative" and (plain.predict([image], [""], [0])[0].depth == 8).all()
    assert plain.facts["plugin"] == "mine.py:red" and len(plain.facts["plugin_sha256"]) == 64
    gain = PluginPredictor(f"{file}:Gain", {"by": "2"})
    assert (gain.predict([image], ["abc"], [10])[0].depth == 27).all() and gain.facts["by"] == "2"
    run_module.check_promise(gain, ["none", "affine"])
    with pytest.raises(UserError, match="needs metres"):
        run_module.check_promise(plain, ["none"])
    with pytest.raises(UserError, match=r"right is numbers \(4, 5\)"):
        PluginPredictor(f"{file}:small").predict([image], [""], [0])
    for text, options, message in (
        (f"{file}:nothing", {}, "no function or class nothing"),
        (f"{file}", {}, "right is constant, mean, or FILE.py:NAME"),
        (f"{tmp_path}/no.py:red", {}, "does not exist"),
        (f"{file}:Gain", {"of": "2"}, "unexpected keyword"),
        (f"{file}:red", {"by": "2"}, "needs a class"),
        (f"{file}:Odd", {}, "promises 'sure'"),
    ):
        with pytest.raises(UserError, match=message):
            PluginPredictor(text, options)
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(ModuleNotFoundError):
        PluginPredictor(f"{file}:red")
    file.write_text("1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        PluginPredictor(f"{file}:red")


def test_only_the_predictors_know_the_pipeline() -> None:
    root = Path(run_module.__file__).parent
    import ast

    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typed = {
            id(n)
            for i in ast.walk(tree)
            if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test)
            for n in i.body
        }
        found = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.ImportFrom) and n.module == "modality_forcing.pipeline"
        ]
        assert path.name == "predictors.py" or all(id(n) in typed for n in found), path
