"""Reading and writing weights: safetensors only, strict in both directions, never a pickle.

A weight *source* is one ``.safetensors`` file, an ``.index.json`` with its shards, or a folder that holds one
of them. Its header is read first, so every missing, surplus or misshapen tensor is reported before a byte of
data moves. Tensors then go straight to their data type and device, one at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from modality_forcing.checkpoint.keymaps import KeyMap, identity_map
from modality_forcing.errors import UserError
from modality_forcing.io.atomic import atomic_file

M = TypeVar("M", bound=nn.Module)

PICKLE_SUFFIXES = {".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth"}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
NAMES_IN_MESSAGE = 3


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        file: the safetensors file.
        stored: its name in that file.
        shape: its shape there.
        dtype: the format's name of its type, for example "BF16".
    """

    file: Path
    stored: str
    shape: tuple[int, ...]
    dtype: str


class Weights:
    """The tensors of a source by name, none of them read yet.

    Attributes:
        path: what was opened, for messages.
        tensors: name -> where it lies.
        metadata: the texts in the header of the (first) file.
    """

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
        self.path = path
        self.tensors = dict(tensors)
        self.metadata = dict(metadata)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def files(self) -> list[Path]:
        """Every file that holds a tensor, in order of name."""
        return sorted({info.file for info in self.tensors.values()})

    def renamed(self, rename: Callable[[str], str | None]) -> Weights:
        """The same tensors under other names; those for which ``rename`` gives None are left out.

        Raises:
            UserError: two tensors would get one name.
        """
        tensors: dict[str, TensorInfo] = {}
        for name, info in self.tensors.items():
            new = rename(name)
            if new is None:
                continue
            if new in tensors:
                raise UserError(f"{self.path} holds {new} twice ({tensors[new].stored} and {info.stored})")
            tensors[new] = info
        return Weights(self.path, tensors, self.metadata)

    def check(self, key_map: KeyMap, our_shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Are these exactly the tensors that ``key_map`` names, in the shapes that follow from ours?

        Raises:
            UserError: some are missing, surplus or misshapen; the message names the first few and the file.
        """
        missing = sorted(key_map.theirs - set(self.tensors))
        surplus = sorted(set(self.tensors) - key_map.theirs)
        if missing:
            raise UserError(f"{self.path} lacks {len(missing)} tensor(s): {_some(missing)}")
        if surplus:
            raise UserError(f"{self.path} holds {len(surplus)} unexpected tensor(s): {_some(surplus)}")
        wrong = [
            f"{name} is {list(self.tensors[name].shape)}, the model needs {list(shape)}"
            for entry in key_map.entries
            for name, shape in zip(entry.theirs, entry.their_shapes(our_shapes[entry.ours[0]]), strict=True)
            if self.tensors[name].shape != shape
        ]
        if wrong:
            raise UserError(f"{self.path} holds {len(wrong)} misshapen tensor(s): {_some(wrong)}")

    def read(
        self,
        names: Iterable[str] | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor), file by file. On the CPU, unconverted, they are maps of the file, not copies.

        Args:
            names: which ones; all by default.
            dtype: converts floating-point tensors; integers keep their type.
        """
        wanted = list(self.tensors) if names is None else list(names)
        by_file: dict[Path, list[str]] = {}
        for name in wanted:
            by_file.setdefault(self.tensors[name].file, []).append(name)
        for file, group in by_file.items():
            with _readable(file), safe_open(str(file), framework="pt", device=str(device)) as handle:
                for name in group:
                    tensor = handle.get_tensor(self.tensors[name].stored)
                    if dtype is not None and tensor.is_floating_point():
                        tensor = tensor.to(dtype)
                    yield name, tensor


def open_weights(path: str | Path, needed: Callable[[str], bool] | None = None) -> Weights:
    """Read the header(s) of a source: a file, an index of shards, or a folder with one of them.

    Args:
        needed: shards that hold no needed tensor are not opened and need not exist.

    Raises:
        UserError: missing, a pickle, damaged, or an index that does not fit its shards.
    """
    path = Path(path)
    if path.is_dir():
        path = _find_in_folder(path)
    if not path.is_file():
        raise UserError(f"no weights at {path}")
    if path.suffix == ".json":
        return _open_sharded(path, needed)
    tensors, metadata = _read_header(path)
    return Weights(path, tensors, metadata)


def _find_in_folder(folder: Path) -> Path:
    for pattern in (
        "model.safetensors.index.json",
        "*.safetensors.index.json",
        "model.safetensors",
        "*.safetensors",
    ):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise UserError(
                f"{folder} holds several weight files ({_some([f.name for f in found])}); name one"
            )
        if found:
            return found[0]
    if any(f.suffix in PICKLE_SUFFIXES for f in folder.iterdir()):
        raise UserError(
            f"{folder} holds only pickled weights, which can run code; convert them to safetensors"
        )
    raise UserError(f"no .safetensors file in {folder}")


def _open_sharded(index: Path, needed: Callable[[str], bool] | None) -> Weights:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({file for name, file in weight_map.items() if needed is None or needed(name)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is no index of safetensors shards") from None
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        # An index from elsewhere must not be able to name files outside its own folder.
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(f"{index} names a shard outside its folder: {shard!r}")
        if not (index.parent / shard).is_file():
            raise UserError(f"{index.parent / shard} is missing; {index.name} names it")
        part, part_metadata = _read_header(index.parent / shard)
        metadata = metadata or part_metadata
        listed = {name for name, file in weight_map.items() if file == shard}
        if listed != set(part):
            names = _some(sorted(listed ^ set(part)))
            raise UserError(f"{index.name} and {index.parent / shard} disagree about {names}")
        tensors.update(part)
    return Weights(index, tensors, metadata)


def _read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    _refuse_pickle(path)
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if 1 < size <= MAX_HEADER_BYTES else None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path} is damaged or no safetensors file")
    metadata = header.pop("__metadata__", {})
    # The library checks what this header only claims: offsets, sizes, the length of the file.
    with _readable(path), safe_open(str(path), framework="pt") as handle:
        names = handle.keys()
    tensors = {
        name: TensorInfo(path, name, tuple(header[name]["shape"]), header[name]["dtype"]) for name in names
    }
    return tensors, metadata


def _refuse_pickle(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    # A safetensors file has 8 bytes of header length, then "{". The content decides, not the name: "PK" is a
    # zip, as torch.save writes it, 0x80 the first byte of a bare pickle.
    looks_safe = start[8:9] == b"{"
    looks_pickled = start[:2] == b"PK" or start[:1] == b"\x80" or path.suffix.lower() in PICKLE_SUFFIXES
    if looks_pickled and not looks_safe:
        raise UserError(
            f"{path} is a pickle, which can run code when opened; only safetensors files are read"
        )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from None


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_IN_MESSAGE
    return ", ".join(names[:NAMES_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")


def load_into(
    module: M,
    weights: Weights,
    key_map: KeyMap | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    keep_float32: Sequence[str] = (),
) -> M:
    """Fill a module, usually made under ``torch.device("meta")``, with exactly the tensors of a source.

    Every tensor goes straight to its type and device and becomes the module's own, so nothing is held twice;
    on the CPU, unconverted, the module maps the file (changes to it never reach the file).

    Args:
        key_map: from the module's names to those of the source; the same names by default.
        dtype: of floating-point parameters; the file's by default. Buffers keep the module's own type.
        keep_float32: prefixes of parameters that are float32 whatever ``dtype`` says.

    Returns:
        The module itself.

    Raises:
        UserError: a tensor is missing, surplus or misshapen, or the file is damaged. The module is unchanged
            then.
    """
    state = module.state_dict()
    key_map = key_map or identity_map(state)
    if key_map.ours != set(state):
        names = _some(sorted(key_map.ours ^ set(state)))
        raise ValueError(f"the key map does not fit {type(module).__name__}: {names}")
    weights.check(key_map, {name: tuple(tensor.shape) for name, tensor in state.items()})

    buffers = {name: buffer.dtype for name, buffer in module.named_buffers()}
    target: dict[str, torch.dtype | None] = {
        name: torch.float32 if name.startswith(tuple(keep_float32)) else buffers.get(name, dtype)
        for name in state
    }
    loaded: dict[str, Tensor] = {}
    waiting: dict[str, Tensor] = {}
    entry_of = {name: entry for entry in key_map.entries for name in entry.theirs}
    for name, tensor in weights.read(device=device):
        waiting[name] = tensor
        entry = entry_of[name]
        # The parts of a fused tensor may lie in several shards.
        if all(part in waiting for part in entry.theirs):
            values = entry.to_ours([waiting.pop(part) for part in entry.theirs])
            for own, value in zip(entry.ours, values, strict=True):
                wanted = target[own]
                loaded[own] = value.to(wanted) if wanted is not None and value.is_floating_point() else value
    module.load_state_dict(loaded, strict=True, assign=True)
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if left:
        raise ValueError(f"{type(module).__name__} has tensors that no checkpoint holds: {_some(left)}")
    return module


def save_weights(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write one safetensors file, in one step: an older file is replaced only by a complete new one.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(path)
    # Names in order and tensors that own their memory: the same weights always give the same bytes.
    own = {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}
    seen: set[int] = set()
    for name, tensor in own.items():
        if tensor.untyped_storage().data_ptr() in seen:
            own[name] = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
    with atomic_file(path) as aside:
        # safetensors 0.8 lets the owner alone read; a model in a shared folder is there for others too.
        aside.touch()
        rights = stat.S_IMODE(aside.stat().st_mode)
        try:
            # None and not {}: the library writes a broken header for empty metadata.
            save_file(own, str(aside), dict(metadata) if metadata else None)
        except SafetensorError as error:
            # The library hides the system's reason (a full disk, say) in its text; atomic_file words it.
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else 0, str(error)) from None
        aside.chmod(rights)
    return path


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; names the weights in ``metadata.json``.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()
