"""Exact maps between our weight names and those of the published layouts, in both directions.

Our names are the release's without its ``dit.`` prefix, which are also those of Black Forest Labs' FLUX.2
files; diffusers names everything differently, splits some tensors and orders one differently. A map is made
from the names that a model has (``state_dict().keys()``), so it covers exactly these: what a file holds
beyond them is surplus, what it lacks is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from modality_forcing.errors import UserError

Shape = tuple[int, ...]


class Kind(Enum):
    """How the tensors of one entry correspond."""

    SAME = "same"
    """One to one, unchanged."""
    ROWS = "rows"
    """Ours is theirs one above the other (fused q, k, v)."""
    SWAP = "swap"
    """One to one, upper and lower half exchanged: (shift, scale) against (scale, shift)."""
    SHARED = "shared"
    """Several of ours are copies of one of theirs."""
    MATRIX = "matrix"
    """Ours is a 1x1 convolution (O, I, 1, 1), theirs a matrix (O, I)."""


@dataclass(frozen=True)
class Entry:
    """Our names, their names, and what leads from one to the other."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    kind: Kind = Kind.SAME

    def their_shapes(self, our_shape: Shape) -> list[Shape]:
        """Shapes of ``theirs``, given the shape that (each of) ours has."""
        if self.kind is Kind.ROWS:
            return [(our_shape[0] // len(self.theirs), *our_shape[1:])] * len(self.theirs)
        if self.kind is Kind.MATRIX:
            return [our_shape[:2]]
        return [our_shape]

    def to_ours(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of ``theirs`` -> tensors of ``ours``. Values are moved, never computed with."""
        if self.kind is Kind.ROWS:
            return [torch.cat(list(tensors))]
        if self.kind is Kind.SWAP:
            return [_swap(tensors[0])]
        if self.kind is Kind.SHARED:
            # Copies: two parameters in one memory would be trained as one.
            return [tensors[0], *(tensors[0].clone() for _ in self.ours[1:])]
        if self.kind is Kind.MATRIX:
            return [tensors[0][:, :, None, None]]
        return list(tensors)

    def to_theirs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of ``ours`` -> tensors of ``theirs``.

        Raises:
            UserError: copies that differ, which the other layout cannot express.
        """
        if self.kind is Kind.ROWS:
            return list(tensors[0].chunk(len(self.theirs)))
        if self.kind is Kind.SWAP:
            return [_swap(tensors[0])]
        if self.kind is Kind.SHARED:
            if any(not torch.equal(tensors[0], other) for other in tensors[1:]):
                raise UserError(f"{' and '.join(self.ours)} differ; the other layout has one tensor for both")
            return [tensors[0]]
        if self.kind is Kind.MATRIX:
            return [tensors[0][:, :, 0, 0]]
        return list(tensors)


def _swap(tensor: Tensor) -> Tensor:
    upper, lower = tensor.chunk(2)
    return torch.cat([lower, upper])


class KeyMap:
    """A complete correspondence between two sets of names; no name stands in two entries."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = list(entries)
        for side in ("ours", "theirs"):
            names = [name for entry in self.entries for name in getattr(entry, side)]
            assert len(names) == len(set(names)), f"a name of {side} stands in two entries"

    @property
    def ours(self) -> set[str]:
        """All our names."""
        return {name for entry in self.entries for name in entry.ours}

    @property
    def theirs(self) -> set[str]:
        """All their names."""
        return {name for entry in self.entries for name in entry.theirs}

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A whole state dict of theirs as one of ours; ``checkpoint.weights`` does the same from a file.

        Raises:
            KeyError: a tensor is missing.
        """
        return {
            name: value
            for entry in self.entries
            for name, value in zip(entry.ours, entry.to_ours([tensors[t] for t in entry.theirs]), strict=True)
        }

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A whole state dict of ours as one of theirs.

        Raises:
            KeyError: a tensor is missing.
            UserError: copies that differ.
        """
        return {
            name: value
            for entry in self.entries
            for name, value in zip(
                entry.theirs, entry.to_theirs([tensors[o] for o in entry.ours]), strict=True
            )
        }


def identity_map(names: Iterable[str]) -> KeyMap:
    """Our own layout, and that of Black Forest Labs for a transformer without depth."""
    return KeyMap(Entry((name,), (name,)) for name in names)


def release_map(names: Iterable[str]) -> KeyMap:
    """The transformer in ``model.safetensors`` of the Modality Forcing release."""
    return KeyMap(Entry((name,), (f"dit.{name}",)) for name in names)


# One rule: our name with {n} for a block number, their name(s), and the kind. In their names {n} is the same
# number and {r} the number counted from the other end.
Rule = tuple[str, Sequence[str], Kind]


def _map_by_rules(names: Iterable[str], rules: Sequence[Rule], layout: str, last: int = 0) -> list[Entry]:
    compiled = [
        (re.compile(re.escape(ours).replace(r"\{n\}", r"(\d+)").replace(r"\{m\}", r"(\d+)")), theirs, kind)
        for ours, theirs, kind in rules
    ]
    entries = []
    for name in names:
        for pattern, theirs, kind in compiled:
            match = pattern.fullmatch(name)
            if match:
                numbers = [int(group) for group in match.groups()]
                fields = dict(zip("nm"[: len(numbers)], numbers, strict=True))
                fields["r"] = last - fields.get("n", 0)
                entries.append(Entry((name,), tuple(t.format(**fields) for t in theirs), kind))
                break
        else:
            raise UserError(f"{name} has no counterpart in the {layout} layout")
    return entries


def _diffusers_transformer_rules() -> list[Rule]:
    rules: list[Rule] = [
        ("img_in.weight", ["x_embedder.weight"], Kind.SAME),
        ("txt_in.weight", ["context_embedder.weight"], Kind.SAME),
        ("final_layer.linear.weight", ["proj_out.weight"], Kind.SAME),
        # Ours is (shift, scale), theirs (scale, shift).
        ("final_layer.adaLN_modulation.1.weight", ["norm_out.linear.weight"], Kind.SWAP),
    ]
    for ours, theirs in (("time_in", "timestep_embedder"), ("guidance_in", "guidance_embedder")):
        for layer, linear in (("in_layer", "linear_1"), ("out_layer", "linear_2")):
            theirs_full = f"time_guidance_embed.{theirs}.{linear}.weight"
            rules.append((f"{ours}.{layer}.weight", [theirs_full], Kind.SAME))
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        rules.append((f"{name}.lin.weight", [f"{name}.linear.weight"], Kind.SAME))

    double = "transformer_blocks.{n}"
    for stream, qkv, norms, out, mlp in (
        ("img", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), "to_out.0", "ff"),
        (
            "txt",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
            ("norm_added_q", "norm_added_k"),
            "to_add_out",
            "ff_context",
        ),
    ):
        ours = f"double_blocks.{{n}}.{stream}"
        rules += [
            (f"{ours}_attn.qkv.weight", [f"{double}.attn.{part}.weight" for part in qkv], Kind.ROWS),
            (f"{ours}_attn.norm.query_norm.scale", [f"{double}.attn.{norms[0]}.weight"], Kind.SAME),
            (f"{ours}_attn.norm.key_norm.scale", [f"{double}.attn.{norms[1]}.weight"], Kind.SAME),
            (f"{ours}_attn.proj.weight", [f"{double}.attn.{out}.weight"], Kind.SAME),
            (f"{ours}_mlp.0.weight", [f"{double}.{mlp}.linear_in.weight"], Kind.SAME),
            (f"{ours}_mlp.2.weight", [f"{double}.{mlp}.linear_out.weight"], Kind.SAME),
        ]
    single = "single_transformer_blocks.{n}.attn"
    return [
        *rules,
        ("single_blocks.{n}.linear1.weight", [f"{single}.to_qkv_mlp_proj.weight"], Kind.SAME),
        ("single_blocks.{n}.linear2.weight", [f"{single}.to_out.weight"], Kind.SAME),
        ("single_blocks.{n}.norm.query_norm.scale", [f"{single}.norm_q.weight"], Kind.SAME),
        ("single_blocks.{n}.norm.key_norm.scale", [f"{single}.norm_k.weight"], Kind.SAME),
    ]


def diffusers_transformer_map(names: Iterable[str]) -> KeyMap:
    """diffusers' ``Flux2Transformer2DModel``.

    Raises:
        UserError: a name without counterpart: diffusers has no depth stream.
    """
    return KeyMap(_map_by_rules(names, _diffusers_transformer_rules(), "diffusers"))


def _shared_statistics(names: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Our two copies of the latent statistics against one at the top level, and the remaining names."""
    prefix = "encoder.bn."
    shared = [name[len(prefix) :] for name in names if name.startswith(prefix)]
    entries = [Entry((f"encoder.bn.{n}", f"decoder.bn.{n}"), (f"bn.{n}",), Kind.SHARED) for n in shared]
    covered = {name for entry in entries for name in entry.ours}
    return entries, [name for name in names if name not in covered]


def bfl_autoencoder_map(names: Iterable[str]) -> KeyMap:
    """Black Forest Labs' autoencoder file: our names, but one copy of the latent statistics."""
    entries, rest = _shared_statistics(list(names))
    return KeyMap([*entries, *(Entry((name,), (name,)) for name in rest)])


def _diffusers_autoencoder_rules() -> list[Rule]:
    def layer(ours: str, theirs: str, kind: Kind = Kind.SAME) -> list[Rule]:
        weight: Rule = (f"{ours}.weight", [f"{theirs}.weight"], kind)
        return [weight, (f"{ours}.bias", [f"{theirs}.bias"], Kind.SAME)]

    rules = [
        *layer("encoder.quant_conv", "quant_conv"),
        *layer("decoder.post_quant_conv", "post_quant_conv"),
        *layer("encoder.down.{n}.downsample.conv", "encoder.down_blocks.{n}.downsamplers.0.conv"),
        # Ours counts from the finest resolution, theirs in the order of execution.
        *layer("decoder.up.{n}.upsample.conv", "decoder.up_blocks.{r}.upsamplers.0.conv"),
    ]
    blocks = [
        ("encoder.down.{n}.block.{m}", "encoder.down_blocks.{n}.resnets.{m}"),
        ("decoder.up.{n}.block.{m}", "decoder.up_blocks.{r}.resnets.{m}"),
    ]
    for half in ("encoder", "decoder"):
        blocks += [(f"{half}.mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}") for i in range(2)]
        attention = f"{half}.mid_block.attentions.0"
        rules += layer(f"{half}.conv_in", f"{half}.conv_in")
        rules += layer(f"{half}.norm_out", f"{half}.conv_norm_out")
        rules += layer(f"{half}.conv_out", f"{half}.conv_out")
        rules += layer(f"{half}.mid.attn_1.norm", f"{attention}.group_norm")
        for ours, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
            rules += layer(f"{half}.mid.attn_1.{ours}", f"{attention}.{theirs}", Kind.MATRIX)
    for ours, theirs in blocks:
        for part in ("norm1", "conv1", "norm2", "conv2"):
            rules += layer(f"{ours}.{part}", f"{theirs}.{part}")
        rules += layer(f"{ours}.nin_shortcut", f"{theirs}.conv_shortcut")
    return rules


def diffusers_autoencoder_map(names: Iterable[str]) -> KeyMap:
    """diffusers' ``AutoencoderKLFlux2``."""
    entries, rest = _shared_statistics(list(names))
    levels = [int(m[1]) for name in rest if (m := re.match(r"decoder\.up\.(\d+)\.", name))]
    rules = _diffusers_autoencoder_rules()
    return KeyMap([*entries, *_map_by_rules(rest, rules, "diffusers", last=max(levels, default=0))])
