"""``mf models``: every preset's parameters, against the published numbers (spec sections 5 and 8)."""

from __future__ import annotations

import pytest

from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.cli.models import models, rows
from modality_forcing.config import TrainConfig
from modality_forcing.pipeline import EMBEDDED
from modality_forcing.presets import FREEZE, MODELS
from modality_forcing.training.estimate import estimate

PUBLISHED = {
    "flux2-klein-4b": 3_875_544_576,
    "flux2-klein-9b": 9_078_581_248,
    "flux2-dev": 32_223_281_152,
    "flux_rgbd_9b_v1": 11_950_633_984,
    "flux_rgbd_9b_v2": 11_986_285_570,
    "flux2-klein-9b-rgbd": 11_986_285_570,
}
# Whole transformers; the study's 362M, 814M and 3256M are the blocks alone (tests/unit/test_flat.py).
OURS = {"t2i-370m": 372_841_984, "t2i-800m": 835_294_720, "t2i-3.3b": 3_326_803_456}


@pytest.fixture(scope="module")
def table():
    return {row.model.name: row for row in rows()}


def test_every_preset_has_a_row(table):
    assert list(table) == list(MODELS)


@pytest.mark.parametrize("name", PUBLISHED | OURS)
def test_totals(table, name):
    assert table[name].total == (PUBLISHED | OURS)[name]
    assert table[name].trainable + table[name].frozen == table[name].total


@pytest.mark.parametrize(("name", "d"), [("t2i-370m", 1024), ("t2i-800m", 1536), ("t2i-3.3b", 3072)])
def test_totals_of_the_flat_family_by_hand(name, d):
    blocks = 30 * (23 * d * d // 2 + 2 * d + 2 * 128)
    ways_in = 128 * d + 4096 * d + 4096  # image, text, and the norm of the text
    time, modulation, head = 256 * d + d * d, 3 * d * d, 128 * d + 2 * d * d
    assert OURS[name] == blocks + ways_in + time + modulation + head


@pytest.mark.parametrize(("name", "doubles", "hidden"), [
    ("flux2-klein-4b-rgbd", 5, 3072), ("flux2-klein-9b-rgbd", 8, 4096), ("flux2-dev-rgbd", 8, 6144),
])  # fmt: skip
def test_post_training_freezes_the_rgb_half_of_the_double_blocks(table, name, doubles, hidden):
    # Per block and stream: qkv 3, proj 1, mlp 6 + 3 times D^2, and two norms over a head.
    assert table[name].frozen == doubles * 2 * (13 * hidden**2 + 2 * 128)


def test_what_is_trained_from_scratch_trains_whole(table):
    assert all(row.frozen == 0 for name, row in table.items() if name not in FREEZE)


@pytest.mark.parametrize("name", MODELS)
def test_the_dry_run_counts_the_same(table, name):
    stage = "t2i" if MODELS[name].transformer.depth_channels is None else "forcing"
    config = TrainConfig(stage=stage, model=MODELS[name], freeze=FREEZE.get(name, ()), image_size=256)
    found = estimate(config).total
    assert (found.total, found.trainable, found.frozen) == (
        table[name].total, table[name].trainable, table[name].frozen
    )  # fmt: skip


def test_a_refiner_is_counted_where_one_ships(table):
    stored = open_checkpoint(EMBEDDED["lowpoly"]).load_refiner()
    assert table["lowpoly"].refiner == sum(p.numel() for p in stored.parameters()) > 1_000_000
    assert table["tiny"].refiner == 0


def test_the_printed_table(capsys):
    models()
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split()[0]: line.split() for line in lines}
    assert cells["flux2-klein-4b-rgbd"][1:4] == ["5,144,061,698", "3,917,225,218", "1,226,836,480"]
    assert cells["t2i-800m"][7:9] == ["12/3", "30"]
    assert cells["t2i-800m-rgbd"][8] == "30+4"
