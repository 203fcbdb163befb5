"""Mean of the weights of two models of the same sizes, one of them trained on from the other.

python recipes/lowpoly/average.py BEFORE AFTER --share 0.8 --out FOLDER

Two models whose training parted late can be averaged weight by weight (Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models"): the mean keeps what BEFORE knew better and most of what AFTER learned.
What both have equal, the autoencoder for one, stays bit for bit; so does a refiner that only one of them has.
With --only refiner everything else is AFTER's.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from modality_forcing.checkpoint.layouts import Checkpoint, open_checkpoint
from modality_forcing.checkpoint.writing import save_model
from modality_forcing.errors import UserError


def mean(before: dict[str, Tensor], after: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) before + share after, in float32; equal tensors as they are."""
    return {
        name: old if torch.equal(old, after[name]) else (1.0 - share) * old + share * after[name]
        for name, old in before.items()
    }


def parts(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """State dicts in float32 by part; a refiner where there is one."""
    refiner = checkpoint.load_refiner()
    found = {
        "transformer": dict(checkpoint.load_transformer(torch.float32).state_dict()),
        "autoencoder": dict(checkpoint.load_autoencoder(torch.float32).state_dict()),
    }
    return found | ({} if refiner is None else {"refiner": dict(refiner.float().state_dict())})


def average(before: str, after: str, share: float, out: Path, only: str | None = None) -> Path:
    """Write the mean of two models to ``out``.

    Args:
        only: the part whose mean is taken, "transformer", "autoencoder" or "refiner"; None: all.

    Raises:
        UserError: a share outside [0, 1], models of different sizes or without that part, a folder that is
            there already.
    """
    if not 0.0 <= share <= 1.0:
        raise UserError(f"--share is {share}; right is 0 (BEFORE alone) to 1 (AFTER alone)")
    if out.exists():
        raise UserError(f"{out} already exists; name another folder")
    old, new = open_checkpoint(before), open_checkpoint(after)
    # Notes, defaults of the sampler and the like may differ; what a tensor means may not.
    for part in ("transformer", "autoencoder", "refiner", "text", "depth", "flow"):
        sizes = [getattr(model.config, part) for model in (old, new)]
        if sizes[0] != sizes[1] and not (part == "refiner" and None in sizes):
            raise UserError(
                f"{part} of {before} differs from that of {after}; their sizes have to be the same"
            )
    states, others = parts(old), parts(new)
    both = {
        name: mean(states[name], others[name], share)
        for name in states
        if name in others and only in (None, name)
    }
    if not both:
        raise UserError(f"--only {only}: {before} and {after} do not both have one")
    config = replace(new.config, refiner=new.config.refiner or old.config.refiner)
    return save_model(out, config, **{**states, **others, **both})


def main() -> None:
    """Parse and write; bad input ends with code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", metavar="BEFORE", help="a model folder")
    parser.add_argument("after", metavar="AFTER", help="a model folder of the same sizes")
    parser.add_argument("--share", type=float, default=0.8, help="of AFTER")
    parser.add_argument(
        "--only", choices=("transformer", "autoencoder", "refiner"), help="the mean of this part alone"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        print(average(options.before, options.after, options.share, options.out, options.only))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
