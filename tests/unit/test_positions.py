"""Position ids on the axes (t, row, col, l)."""

from __future__ import annotations

import torch

from modality_forcing.codecs.depth import patchify
from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids


def test_text_counts_on_the_last_axis():
    assert text_ids(3).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]


def test_image_counts_rows_and_columns():
    assert image_ids(2, 3).tolist() == [
        [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 2, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 2, 0],
    ]  # fmt: skip


def test_depth_lies_on_the_image_one_step_in_t():
    image, depth = image_ids(3, 5), depth_ids(3, 5)
    assert torch.equal(depth[:, 1:], image[:, 1:])
    assert (image[:, 0] == 0).all()
    assert (depth[:, 0] == 1).all()


def test_ids_are_in_the_order_of_the_tokens():
    rows, cols, patch = 3, 4, 2
    row_of_pixel = (torch.arange(rows * patch) // patch).float()[:, None].expand(-1, cols * patch)
    col_of_pixel = (torch.arange(cols * patch) // patch).float()[None].expand(rows * patch, -1)
    ids = image_ids(rows, cols)
    assert torch.equal(patchify(row_of_pixel[None], patch)[0, :, 0], ids[:, 1])
    assert torch.equal(patchify(col_of_pixel[None], patch)[0, :, 0], ids[:, 2])
