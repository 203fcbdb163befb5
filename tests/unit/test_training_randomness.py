"""Numbers keyed by (seed, step, slot): independent of how a batch is split, unrelated between keys."""

from __future__ import annotations

import torch

from modality_forcing.training.randomness import DEPTH_NOISE, RGB_NOISE, generator_for, noise_for, seed_for


def test_noise_follows_its_slots():
    like = torch.empty(4, 50, 7)
    whole = noise_for(1, 2, RGB_NOISE, range(4), like)
    parts = [noise_for(1, 2, RGB_NOISE, slots, like[:2]) for slots in ([2, 3], [0, 1])]
    assert torch.equal(torch.cat(parts[::-1]), whole)


def test_every_key_matters():
    like = torch.empty(1, 1000)
    keys = [(1, 2, RGB_NOISE, 3), (0, 2, RGB_NOISE, 3), (1, 3, RGB_NOISE, 3), (1, 2, DEPTH_NOISE, 3),
            (1, 2, RGB_NOISE, 4), (2, 1, RGB_NOISE, 3)]  # fmt: skip
    draws = torch.cat([noise_for(*key[:3], [key[3]], like) for key in keys])
    unlike = torch.corrcoef(draws) - torch.eye(len(keys))
    assert unlike.abs().max() < 0.15


def test_noise_is_standard_normal_over_slots():
    noise = noise_for(0, 0, RGB_NOISE, range(64), torch.empty(64, 500))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    firsts = noise_for(0, 0, RGB_NOISE, range(4000), torch.empty(4000, 1))  # the first number of each stream
    assert abs(firsts.mean()) < 0.06
    assert abs(firsts.std() - 1) < 0.05


def test_seeds_of_any_size_and_sign():
    seeds = {seed_for(seed, 0) for seed in (0, -1, 1, 2**63, 2**64 - 2)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.equal(torch.rand(3, generator=generator_for(5)), torch.rand(3, generator=generator_for(5)))
