"""Several real processes, forked from a warm one that has imported everything and computed nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["modality_forcing.training.trainer", "modality_forcing.codecs.text_minilm", "torch._dynamo", "peft"]
)


class Crew:
    """The processes of one run; ``results`` waits for them.

    Args:
        work: a module-level function; what it returns (plain values) is that process' result.
        size: processes; 0: one plain process without a process group.
    """

    def __init__(self, size: int, work: Callable[..., Any], *args: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="crew-"))
        environment = {"OMP_NUM_THREADS": "1"}
        if size:
            environment |= {
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(_free_port()),
            }
        self.processes = []
        for rank in range(max(1, size)):
            own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if size else {})
            out = self.folder / f"{rank}.json"
            process = _context.Process(target=_child, args=(own, out, work, args), daemon=True)
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 90.0) -> list[int | None]:
        """Exit codes; processes that take longer are killed."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def texts(self) -> list[str]:
        """What each process left: its result as JSON, or its error."""
        return [
            path.read_text() if (path := self.folder / f"{rank}.json").exists() else ""
            for rank in range(len(self.processes))
        ]

    def results(self) -> list[Any]:
        """Results of all processes; fails with the first error."""
        codes = self.wait()
        for text, code in zip(self.texts(), codes, strict=True):
            assert code == 0, f"exit code {code}: {text}"
        return [json.loads(text) for text in self.texts()]


def together(size: int, work: Callable[..., Any], *args: Any) -> Any:
    """Run ``work`` on ``size`` processes and return the first one's result."""
    return Crew(size, work, *args).results()[0]


def _child(environment: dict[str, str], out: Path, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    import torch

    from modality_forcing.training.distributed import leave_world

    torch.set_num_threads(1)
    try:
        result = work(*args)
        leave_world()
        out.write_text(json.dumps(result))
    except BaseException as error:
        out.write_text(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
