"""Strict reading of safetensors: what is refused, what the message names, and that nothing is copied."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
import sys

import pytest
import torch
from torch import nn

from modality_forcing.checkpoint.keymaps import Entry, KeyMap, Kind
from modality_forcing.checkpoint.weights import file_sha256, load_into, open_weights, save_weights
from modality_forcing.errors import UserError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2, bias=False)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def meta_net() -> Net:
    with torch.device("meta"):
        return Net()


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    net = Net()
    net.mean += 0.3
    path = save_weights(tmp_path / "net.safetensors", net.state_dict(), {"made": "here"})
    return path, net.state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_load_is_exact_and_keeps_gradients_on(saved):
    path, state = saved
    net = load_into(meta_net(), open_weights(path))
    assert equal(net.state_dict(), state)
    assert all(p.requires_grad for p in net.parameters())
    assert open_weights(path).metadata == {"made": "here"}


def test_changing_the_module_leaves_the_file(saved):
    path, _ = saved
    before = file_sha256(path)
    net = load_into(meta_net(), open_weights(path))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert file_sha256(path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_maps_the_file_instead_of_copying_it(tmp_path):
    def resident() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    path = save_weights(tmp_path / "big.safetensors", {"weight": torch.ones(4096, 4096)})
    with torch.device("meta"):
        layer = nn.Linear(4096, 4096, bias=False)
    before = resident()
    load_into(layer, open_weights(path))
    assert layer.weight.sum() == 4096 * 4096
    assert resident() - before < 16 * 1024  # kB; the tensor has 64 MB


def test_dtype_is_for_parameters_only(saved):
    path, state = saved
    net = load_into(meta_net(), open_weights(path), dtype=torch.bfloat16, keep_float32=("head.",))
    assert net.first.weight.dtype == torch.bfloat16
    assert torch.equal(net.first.weight, state["first.weight"].bfloat16())
    assert torch.equal(net.head.weight, state["head.weight"])
    assert torch.equal(net.mean, state["mean"])
    assert net.count.dtype == torch.long


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.weight"), r"lacks 1 tensor\(s\): head\.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected tensor\(s\): extra"),
        (lambda s: s.update(mean=torch.zeros(3)), r"mean is \[3\], the model needs \[2\]"),
        (lambda s: s.clear(), r"lacks 5 tensor\(s\): count, first\.bias, first\.weight and 2 more"),
    ],
)
def test_wrong_tensors_are_named_and_the_module_is_untouched(saved, tmp_path, change, message):
    state = dict(saved[1])
    change(state)
    path = save_weights(tmp_path / "wrong.safetensors", state)
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_into(net, open_weights(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert equal(net.state_dict(), before)


def test_damaged_files(saved, tmp_path):
    path, _ = saved
    whole = path.read_bytes()
    damaged = {
        "cut": whole[:-7],
        "cut_header": whole[:30],
        "empty": b"",
        "short": b"\x01\x02",
        "noise": bytes(range(256)) * 4,
        "huge_header": struct.pack("<Q", 2**60) + whole[8:],
        "longer": whole + b"\0" * 9,
        "offsets": whole.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1),
        "list": struct.pack("<Q", 2) + b"[]",
    }
    for name, content in damaged.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            open_weights(tmp_path / f"{name}.safetensors")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.ckpt", "model.safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 4, "torch"])
def test_pickles_are_refused_whatever_their_name(tmp_path, name, protocol):
    path = tmp_path / name
    if protocol == "torch":
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    # A text pickle under a wrong name looks like any damaged file; the folder's name says "pickle" too.
    text_pickle = protocol == 0 and name.endswith(".safetensors")
    with pytest.raises(UserError, match="is damaged" if text_pickle else "is a pickle, which"):
        open_weights(path)


def test_folder_of_pickles_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(UserError, match="only pickled weights"):
        open_weights(tmp_path)


def write_shards(folder, state, parts):
    weight_map = {}
    for number, names in enumerate(parts):
        file = f"part-{number}.safetensors"
        save_weights(folder / file, {name: state[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards(saved, tmp_path):
    _, state = saved
    folder = tmp_path / "sharded"
    folder.mkdir()
    index = write_shards(folder, state, [["first.weight", "mean"], ["first.bias", "count", "head.weight"]])
    for source in (folder, index):
        assert equal(load_into(meta_net(), open_weights(source)).state_dict(), state)


def test_a_fused_tensor_may_lie_in_several_shards(tmp_path):
    parts = {name: torch.randn(2, 3) for name in ("q", "k", "v")}
    write_shards(tmp_path, parts, [["k"], ["v"], ["q"]])
    with torch.device("meta"):
        layer = nn.Linear(3, 6, bias=False)
    load_into(layer, open_weights(tmp_path), KeyMap([Entry(("weight",), ("q", "k", "v"), Kind.ROWS)]))
    assert torch.equal(layer.weight, torch.cat([parts["q"], parts["k"], parts["v"]]))


def test_wrong_indices(saved, tmp_path):
    _, state = saved
    folder = tmp_path / "sharded"
    folder.mkdir()
    index = write_shards(folder, state, [list(state)])
    shard = index.parent / "part-0.safetensors"
    good = json.loads(index.read_text())
    cases = [
        ({"weight_map": {**good["weight_map"], "ghost": "part-0.safetensors"}}, "disagree about ghost"),
        ({"weight_map": {"mean": "part-0.safetensors"}}, "disagree about"),
        ({"weight_map": {"mean": "part-9.safetensors"}}, "missing"),
        ({"weight_map": {"mean": "../net.safetensors"}}, "outside"),
        ({"weight_map": {"mean": str(shard.resolve())}}, "outside"),
        ({"weight_map": {"mean": 3}}, "outside"),
        ({"weight_map": [1]}, "no index"),
        ({}, "no index"),
        ([], "no index"),
    ]
    for content, message in cases:
        index.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            open_weights(index)


def test_missing_and_ambiguous(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        open_weights(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        open_weights(tmp_path)
    for name in ("a", "b"):
        save_weights(tmp_path / f"{name}.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(UserError, match=r"several weight files \(a\.safetensors, b\.safetensors\)"):
        open_weights(tmp_path)


def test_same_weights_give_the_same_bytes(tmp_path):
    state = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    first = save_weights(tmp_path / "1.safetensors", state)
    second = save_weights(tmp_path / "2.safetensors", dict(reversed(state.items())))
    assert file_sha256(first) == file_sha256(second)


def test_views_and_shared_tensors_are_saved_whole(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {"base": base, "transposed": base.T, "row": base[1], "same": base}
    weights = dict(open_weights(save_weights(tmp_path / "v.safetensors", state)).read())
    assert equal(weights, state)


@pytest.mark.skipif(os.name == "nt", reason="rights of POSIX files")
def test_others_may_read_what_the_user_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        path = save_weights(tmp_path / "net.safetensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_writing_leaves_the_old_file_when_it_fails(saved, monkeypatch):
    import modality_forcing.checkpoint.weights as module

    path, state = saved
    before = path.read_bytes()

    def fail(*_args):
        raise module.SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(UserError, match="disk is full"):
        save_weights(path, state)
    assert path.read_bytes() == before
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_renamed_twice_to_one_name(saved):
    with pytest.raises(UserError, match="twice"):
        open_weights(saved[0]).renamed(lambda name: "same")


def test_a_tensor_no_file_holds_is_a_programming_error(tmp_path):
    class Forgotten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(2), persistent=False)

    with torch.device("meta"):
        module = Forgotten()
    path = save_weights(tmp_path / "none.safetensors", {})
    with pytest.raises(ValueError, match="table"):
        load_into(module, open_weights(path))
