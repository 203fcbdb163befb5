"""From what a user names, a path or a Hub id, to a path on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from modality_forcing.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def looks_like_hub_id(source: str | Path) -> bool:
    """True for ``owner/name`` where no such path exists."""
    return HUB_ID.fullmatch(str(source)) is not None and not Path(source).expanduser().exists()


def fetch(source: str | Path, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The path itself if it exists; otherwise those files of the Hub repository that match ``patterns``.

    Args:
        source: a file, a folder, or ``owner/name``.
        patterns: file names with ``*``, as ``huggingface_hub`` takes them; only these are downloaded.
        revision: branch, tag or commit of the repository.

    Raises:
        UserError: neither a path nor a Hub id; no access; not reachable and not downloaded before.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not looks_like_hub_id(source):
        raise UserError(f"{source} does not exist")
    # Imported here: it takes a noticeable part of a second, and local models never need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError:
        raise UserError(
            f"{source} on the Hugging Face Hub asks for consent: accept its terms there, then hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{source} on the Hugging Face Hub has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{source} is no path here, and the Hugging Face Hub has no public repository of that name"
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{source} is no path here, was not downloaded before, and the Hugging Face Hub is out of reach"
        ) from None
    except Exception as error:  # whatever the network stack below raises, the user needs one line
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise UserError(
            f"{source} is no path here, and it could not be fetched from the Hugging Face Hub: {reason}"
        ) from None
