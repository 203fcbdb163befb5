"""Progress lines: every number of a row is there, the important ones first, and units are readable."""

from __future__ import annotations

import pytest

from modality_forcing.cli.train_view import View, duration, line


def test_a_line_has_everything_in_order():
    row = {
        "step": 20, "grad_norm": 0.51, "joint_rgb": 0.7, "i2d_depth": 0.3, "depth": 0.25, "rgb": 0.8,
        "loss": 1.05, "lr": 0.001, "samples_per_s": 41.26, "tokens_per_s": 15321.0, "eta_s": 3725.2,
        "skipped": 0.0, "bad_samples": 2.0, "seconds": 3.0,
    }  # fmt: skip
    assert line(row) == (
        "loss 1.05  rgb 0.8  depth 0.25  joint rgb 0.7  i2d depth 0.3  grad 0.51  lr 0.001  41.3 samples/s  "
        "15.3k tokens/s  left 1:02:05  bad samples 2"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (75, "1:15"),
        (90000, "25:00:00"),
        (float("inf"), "?"),
        (float("nan"), "?"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_without_a_terminal_every_row_is_a_line(capsys):
    with View() as view:
        view.stage("forcing", 40, 10)
        view.row({"step": 20, "loss": 0.5})
        view.numbers(20, {"val_abs_rel": 0.123456})
        view.stage_done()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "forcing: 30 steps after 10",
        "forcing 20/40  loss 0.5",
        "forcing 20/40  val_abs_rel 0.1235",
    ]


def test_other_processes_say_nothing(capsys):
    with View(quiet=True) as view:
        view.stage("forcing", 40)
        view.row({"step": 20, "loss": 0.5})
        view.say("hello")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_on_a_terminal_there_is_a_bar(quiet, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with View(quiet=quiet) as view:
        view.stage("forcing", 40, 10)
        view.row({"step": 20, "loss": 0.5})
        view.say("something that stays")
        view.bars.refresh()
        view.stage_done()
        with view.counting("rendering", 8) as progress:
            progress(4)
            view.bars.refresh()
    out, err = capsys.readouterr()
    assert out == ""
    if quiet:
        assert err == ""
    else:
        for text in ("loss 0.5", "50%", "something that stays", "rendering"):
            assert text in err
