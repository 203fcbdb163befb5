"""Frozen encoders: right, asked once per input, remembered to the bit, through crashes and full disks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modality_forcing.config import AugmentConfig, AutoencoderConfig, DataConfig, SourceConfig, TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.presets import TINY
from modality_forcing.training import memory
from modality_forcing.training.data import Batch, Loader
from modality_forcing.training.encoding import Encoders, load_autoencoder
from modality_forcing.training.memory import Remembered, Shelf

SIZE = 32


@pytest.fixture(scope="module")
def base(small_shards, tiny_model) -> TrainConfig:
    data = DataConfig(sources=(SourceConfig(str(small_shards)),))
    return TrainConfig(
        stage="t2i", batch=6, image_size=SIZE, data=data, autoencoder=str(tiny_model), model=TINY, seed=1
    )


def with_cache(config: TrainConfig, folder: Path, **changes) -> TrainConfig:
    return replace(config, data=replace(config.data, cache=str(folder), **changes))


def batches(config: TrainConfig, steps: int, first: int = 0) -> list[Batch]:
    read = Loader(config.data, batch=config.batch, seed=config.seed, size=SIZE, stage=config.stage)
    return [read.load(step)[0] for step in range(first, first + steps)]


class Count:
    """Counts what reaches the encoders of an ``Encoders``."""

    def __init__(self, encoders: Encoders, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images, self.captions = 0, []
        encode, states = encoders.autoencoder.encode, encoders.text_encoder.encode

        def image(x):
            self.images += len(x)
            return encode(x)

        def text(captions):
            self.captions += captions
            return states(captions)

        monkeypatch.setattr(encoders.autoencoder, "encode", image)
        monkeypatch.setattr(encoders.text_encoder, "encode", text)


def test_latents_and_states_are_the_encoders_own(base):
    encoders = Encoders(base)
    (batch,) = batches(base, 1)
    with torch.no_grad():
        expected = load_autoencoder(base.autoencoder, base).eval().encode(batch.images)
    latents = encoders.latents(batch)
    assert latents.shape == (6, 32, SIZE // 16, SIZE // 16)
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)
    assert not latents.requires_grad
    states = encoders.text(batch.captions)
    assert states.shape == (6, 16, 1152)
    torch.testing.assert_close(states, encoders.text_encoder.encode(batch.captions))
    torch.testing.assert_close(encoders.empty_text, encoders.text_encoder.encode([""]))
    assert torch.equal(encoders.latents(replace(batch, latents=expected, images=None)), expected)


def test_an_output_does_not_depend_on_its_neighbours(base):
    """So one process and four, one micro-batch and four, all train on the same numbers."""
    encoders = Encoders(base)
    (batch,) = batches(base, 1)
    whole = encoders.latents(batch)
    parts = [encoders.latents(Batch(image[None], *[None] * 5, (SIZE, SIZE))) for image in batch.images]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(encoders.text(batch.captions)[2:3], encoders.text(batch.captions[2:3]))


@pytest.mark.parametrize("kind", ["memory", "disk", "both"])
def test_every_input_is_encoded_once(base, kind, tmp_path, monkeypatch):
    config = replace(base, remember=kind != "disk")
    config = config if kind == "memory" else with_cache(config, tmp_path)
    encoders = Encoders(config)
    seen = batches(config, 8)
    plain = Encoders(base)
    count = Count(encoders, monkeypatch)
    first = [(encoders.latents(batch), encoders.text(batch.captions)) for batch in seen]
    keys = {key for batch in seen for key in batch.keys}
    captions = {caption for batch in seen for caption in batch.captions}
    assert count.images == len(keys) < 48
    assert sorted(count.captions) == sorted(captions)
    for batch, (latents, text) in zip(seen, first, strict=True):
        assert torch.equal(encoders.latents(batch), latents)
        assert torch.equal(latents, plain.latents(batch).half().float())
        assert torch.equal(text, plain.text(batch.captions).half().float())
    assert count.images == len(keys)


def test_the_cache_outlives_the_run_to_the_bit(base, tmp_path, monkeypatch):
    config = with_cache(base, tmp_path / "cache")
    encoders = Encoders(config)
    seen = batches(config, 4)
    first = [(encoders.latents(batch), encoders.text(batch.captions)) for batch in seen]
    encoders.flush()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(files) == 2
    again = Encoders(config)
    count = Count(again, monkeypatch)
    for batch, (latents, text) in zip(seen, first, strict=True):
        assert torch.equal(again.latents(batch), latents)
        assert torch.equal(again.text(batch.captions), text)
    again.flush()
    assert (count.images, count.captions) == (0, [])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == files


def test_another_encoder_does_not_see_this_ones_cache(base, tmp_path, monkeypatch):
    config = with_cache(base, tmp_path / "cache")
    (batch,) = batches(config, 1)
    encoders = Encoders(config)
    before = encoders.latents(batch)
    encoders.flush()
    state = load_autoencoder(base.autoencoder, base).state_dict()
    state = {
        name: tensor * 1.5 if name.endswith("conv_out.weight") else tensor for name, tensor in state.items()
    }
    (tmp_path / "other").mkdir()
    save_file(
        {k: v.clone().contiguous() for k, v in state.items()}, tmp_path / "other/autoencoder.safetensors"
    )
    other = Encoders(replace(config, autoencoder=str(tmp_path / "other")))
    count = Count(other, monkeypatch)
    assert not torch.equal(other.latents(batch), before)
    assert count.images == 6


def test_images_changed_at_random_pass_the_cache_by(base, tmp_path, monkeypatch):
    config = with_cache(base, tmp_path / "cache", augment=AugmentConfig(mirror=0.0, colour=0.5))
    encoders = Encoders(config)
    count = Count(encoders, monkeypatch)
    a, b = batches(config, 1)[0], batches(config, 1, first=2)[0]
    assert set(a.ids) & set(b.ids)
    plain = Encoders(base)
    for number, batch in enumerate((a, b, a)):
        latents = encoders.latents(batch)
        torch.testing.assert_close(latents, plain.latents(batch), atol=1e-2, rtol=1e-2)
        assert count.images == 6 * (number + 1)
    encoders.text(a.captions)
    encoders.flush()
    assert [path.parent.name.split("-")[0] for path in (tmp_path / "cache").rglob("*.safetensors")] == [
        "text"
    ]


def test_text_of_large_encoders_is_kept_without_loss(base, tmp_path, monkeypatch):
    """Qwen3 computes in bfloat16, with outliers beyond float16's 65504."""
    from modality_forcing.training import encoding

    class Large:
        fingerprint = "large"

        def encode(self, prompts):
            states = torch.tensor([[[70000.0, 1.0]] for _ in prompts])
            return states.bfloat16().float()

    monkeypatch.setattr(encoding, "make_text_encoder", lambda config, device: Large())
    text = replace(TINY.text, encoder="qwen3-4b")
    config = with_cache(replace(base, remember=True, model=replace(TINY, text=text)), tmp_path)
    expected = Large().encode(["a", "b"])
    assert torch.equal(Encoders(config).text(["a", "b"]), expected)
    encoders = Encoders(config)
    encoders.text(["a", "b"])
    encoders.flush()
    assert torch.equal(Encoders(config).text(["a", "b"]), expected)


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_what_cannot_be_kept_is_no_silent_infinity(value):
    with pytest.raises(FloatingPointError, match="not finite"):
        Remembered()(["a"], lambda new: torch.full((1, 2), value))


def test_inputs_without_a_name_are_asked_each_time():
    asked: list[list[int]] = []

    def compute(new: list[int]) -> torch.Tensor:
        asked.append(new)
        return torch.tensor([[10.0 * i] for i in new])

    remembered = Remembered()
    assert remembered(["a", None, "a", "b", None], compute).flatten().tolist() == [0, 10, 0, 30, 40]
    assert remembered(["b", None, "a"], compute).flatten().tolist() == [30, 10, 0]
    assert asked == [[0, 1, 3, 4], [1]]


def test_a_shelf_holds_what_was_put_also_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "FILE_ENTRIES", 3)
    shelf = Shelf(tmp_path / "shelf")
    assert shelf.get("0") is None
    values = {str(i): torch.full((2, 3), float(i), dtype=torch.float16) for i in range(7)}
    for key, value in values.items():
        shelf.put(key, value)
        value_read = shelf.get(key)
        assert value_read.dtype == torch.float16 and torch.equal(value_read, value)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2  # two files of three; the seventh waits
    assert len(Shelf(tmp_path / "shelf")) == 6
    shelf.flush()
    again = Shelf(tmp_path / "shelf")
    assert all(torch.equal(again.get(key), value) for key, value in values.items())
    assert again.get("7") is None


def test_a_shelf_sees_what_another_process_wrote_meanwhile(tmp_path):
    one, two = Shelf(tmp_path / "shelf"), Shelf(tmp_path / "shelf")
    assert two.get("a") is None
    one.put("a", torch.ones(2))
    one.flush()
    two.put("b", torch.zeros(2))
    two.flush()
    assert torch.equal(two.get("a"), torch.ones(2))
    time.sleep(0.02)  # the folder's time stamp has steps of some milliseconds
    assert torch.equal(one.get("b"), torch.zeros(2))


def fill(folder: str, start: int) -> None:
    torch.set_num_threads(1)
    memory.FILE_ENTRIES = 4
    shelf = Shelf(folder)
    for i in range(start, 10**6):
        shelf.put(f"{i % 400}", torch.full((64,), float(i % 400)))


def test_killed_processes_leave_only_whole_entries(tmp_path):
    """Two fill one folder at a time and are killed at some moment; what is there afterwards is right."""
    context = multiprocessing.get_context("fork")
    for attempt in range(4):
        workers = [context.Process(target=fill, args=(str(tmp_path), start)) for start in (0, 100 * attempt)]
        for worker in workers:
            worker.start()
        time.sleep(0.15 + 0.037 * attempt)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
    shelf = Shelf(tmp_path)
    found = {i: value for i in range(400) if (value := shelf.get(str(i))) is not None}
    assert len(found) == len(shelf) > 20
    assert all(torch.equal(value, torch.full((64,), float(i))) for i, value in found.items())


def test_leftovers_of_killed_processes_go_after_a_while(tmp_path):
    old, fresh = tmp_path / ".aaaaaaaa.tmp.safetensors", tmp_path / ".bbbbbbbb.tmp.safetensors"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    Shelf(tmp_path)
    assert not old.exists()
    assert fresh.exists()  # perhaps another process is at it


def test_a_damaged_file_is_made_anew(tmp_path):
    shelf = Shelf(tmp_path)
    shelf.put("a", torch.ones(2))
    shelf.flush()
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.warns(UserWarning, match="damaged; its entries are made anew"):
        again = Shelf(tmp_path)
    assert again.get("a") is None
    again.put("a", torch.ones(2))
    again.flush()
    assert torch.equal(Shelf(tmp_path).get("a"), torch.ones(2))


def test_a_full_disk_ends_the_keeping_not_the_run(tmp_path, monkeypatch):
    shelf = Shelf(tmp_path / "shelf")

    def full(path, tensors, metadata):
        raise UserError(f"could not write {path}: the disk is full")

    shelf.put("a", torch.ones(2))
    monkeypatch.setattr(memory, "save_weights", full)
    with pytest.warns(UserWarning, match=r"the disk is full.*no longer kept"):
        shelf.flush()
    shelf.put("b", torch.ones(2))
    shelf.flush()
    remembered = Remembered(shelf=shelf, in_memory=False)
    assert remembered(["a"], lambda new: torch.ones(1, 2)).tolist() == [[1.0, 1.0]]


def test_an_autoencoder_run_is_as_good_as_a_model(base, tmp_path):
    """A finished run holds the file; a running one says what is missing."""
    with pytest.raises(UserError, match="autoencoder=FOLDER"):
        load_autoencoder("", base)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    for missing in (run, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="finish the autoencoder run first"):
            load_autoencoder(missing, base)
    state = load_autoencoder(base.autoencoder, base).state_dict()
    save_file({k: v.clone().contiguous() for k, v in state.items()}, run / "autoencoder.safetensors")
    loaded = load_autoencoder(run, base).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_an_autoencoder_from_elsewhere(base, tmp_path):
    """A lone file (FLUX.2's autoencoder comes as one): the same values; other sizes are refused."""
    sizes = AutoencoderConfig(channels=32, num_res_blocks=1, z_channels=8)
    model = Autoencoder(sizes)
    path = tmp_path / "ae.safetensors"
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(plain, path)
    config = replace(base, model=replace(TINY, autoencoder=sizes))
    loaded = load_autoencoder(path, config).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain.items())
    with pytest.raises(UserError, match=r"model\.autoencoder asks for"):
        load_autoencoder(path, base)
    with pytest.raises(UserError, match=r"autoencoder\.safetensors holds .* misshapen"):
        load_autoencoder(
            base.autoencoder,
            replace(base, model=replace(TINY, autoencoder=replace(TINY.autoencoder, z_channels=4))),
        )


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_resumed_run_that_remembers_is_the_uninterrupted_one_to_the_bit(base, kind, tmp_path):
    """What the resumed run encodes anew, and in other company, is what the first run kept."""
    from modality_forcing.training.trainer import Trainer

    config = replace(base, batch=8, steps=6, threads=1, remember=kind == "memory")  # 12 samples: repeats
    if kind == "disk":
        config = with_cache(config, tmp_path / "cache")
    straight = Trainer(config, tmp_path / "straight")
    steps = [straight.train_step() for _ in range(6)]
    first = Trainer(config, tmp_path / "broken")
    assert [first.train_step() for _ in range(3)] == steps[:3]
    first.save()
    resumed = Trainer(config, tmp_path / "broken", resume=True)
    assert [resumed.train_step() for _ in range(3)] == steps[3:]
