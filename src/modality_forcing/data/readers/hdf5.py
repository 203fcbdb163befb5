"""Arrays in HDF5 files. The package h5py is in the extra "data"."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.io.checks import MAX_PIXELS


def read_hdf5(path: Path, name: str) -> np.ndarray:
    """One array of numbers, float32 or as it is stored.

    Args:
        path: the file.
        name: of the array in it.

    Raises:
        UserError: no such file, damaged, no such array, or one too large for a picture.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            array = file.get(name)
            if not isinstance(array, h5py.Dataset):
                raise UserError(f"{path.name} holds no array {name!r}")
            if array.dtype.kind not in "uif" or array.size > 4 * MAX_PIXELS:
                raise UserError(
                    f"{path.name} holds {array.dtype} {array.shape}; right is a picture of numbers"
                )
            values = np.array(array)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path.name} is no valid HDF5 file: {' '.join(str(error).split())[:120]}") from None
    return values.astype(np.float32) if values.dtype.kind == "f" else values
