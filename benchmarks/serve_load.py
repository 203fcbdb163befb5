"""Many clients at one server: nothing lost, memory flat, latency against the queueing ideal, a clean stop.

python benchmarks/serve_load.py [--jobs 500] [--clients 32] [--batch-size 8] [--json out.json]

Every client submits its next job when the last one is over: joint, image to depth and depth to image of the
tiny preset with random weights, in turn. The server is `mf serve` on loopback, the clients are threads of
this process and use the client of the package.

Queueing ideal of a job: the batches of the run in their order and with the seconds they took, each started as
soon as the one before is over and its last job was sent; without the time for HTTP, uploads, the store, and
telling. Memory is the resident memory of the server and its processes together.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _report
import numpy as np
from PIL import Image

from modality_forcing.client import Client

EVERY = 10  # jobs between looks at the memory
SETTLED = 100  # jobs after which memory is to be flat
PATIENCE = 180.0  # seconds for a server to start


def write_model(folder: Path) -> Path:
    """The tiny preset with random weights."""
    import torch

    from modality_forcing.checkpoint.writing import save_model
    from modality_forcing.model.autoencoder import Autoencoder
    from modality_forcing.model.transformer import Transformer
    from modality_forcing.presets import TINY

    generator = torch.Generator().manual_seed(0)

    def fill(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim < 2:
            return torch.ones(tensor.shape, dtype=tensor.dtype)
        return torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5

    with torch.device("meta"):
        states = {
            "transformer": Transformer(TINY.transformer).state_dict(),
            "autoencoder": Autoencoder(TINY.autoencoder).state_dict(),
        }
    filled = {part: {name: fill(t) for name, t in state.items()} for part, state in states.items()}
    return save_model(folder, TINY, **filled)


class Server:
    """`mf serve` as a process of its own."""

    def __init__(self, model: Path, data: Path, *options: str) -> None:
        command = [sys.executable, "-m", "modality_forcing", "serve", "--model", f"tiny={model}"]
        command += ["--device", "cpu", "--port", "0", "--data", str(data), "--no-page"]
        command += ["--rate", "1000000", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip().rstrip("/")
        if not self.url:
            raise SystemExit("the server did not start")
        self.client = Client(self.url, patience=PATIENCE)
        self.client._retry("GET", "/readyz")

    def memory(self) -> float:
        """Resident megabytes of the server and its children; Linux only, else NaN."""
        total = 0
        try:
            pids = [self.process.pid]
            for task in Path(f"/proc/{self.process.pid}/task").iterdir():
                pids += [int(pid) for pid in (task / "children").read_text().split()]
            for pid in pids:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                total += pages * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return float("nan")
        return total / 1e6

    def stop(self) -> tuple[int, float]:
        """SIGTERM; exit code and seconds."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120), time.monotonic() - started


@dataclass
class Load:
    """What the clients saw."""

    sent: dict[str, float] = field(default_factory=dict)
    """Job -> when its submission began."""
    over: dict[str, float] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: list[tuple[int, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def files() -> dict[str, bytes]:
    """A picture and a depth map to send."""
    rows, cols = np.mgrid[0:48, 0:64]
    pixels = np.stack([cols * 4, rows * 5, 255 - cols * 3], -1).astype(np.uint8)
    image, depth = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(image, "PNG")
    np.save(depth, (4 - rows / 16).astype(np.float32))
    return {"image": image.getvalue(), "depth": depth.getvalue()}


def request(number: int, sent: dict[str, bytes]) -> tuple[str, dict[str, Any]]:
    """Task and fields of one job; its seed is its number."""
    task = ("joint", "i2d", "d2i")[number % 3]
    fields: dict[str, Any] = {"prompt": f"job {number}", "seed": number}
    if task == "i2d":
        fields["image"] = sent["image"]
    if task == "d2i":
        fields["depth"] = sent["depth"]
    return task, fields


def run_load(server: Server, count: int, clients: int) -> Load:
    """``count`` jobs by ``clients`` threads, each with one job at a time."""
    load, sent, lock = Load(), files(), threading.Lock()
    numbers = iter(range(count))

    def one(number: int) -> None:
        task, fields = request(number, sent)
        began = time.time()
        job = server.client.submit(task, **fields)
        last: dict[str, Any] = {}
        for event in server.client.events(job["id"]):
            last = event.data if event.kind == "state" else last
        ended = time.time()
        with lock:
            if job["id"] in load.jobs:
                load.faults.append(f"job {job['id']} was given out twice")
            load.jobs[job["id"]], load.sent[job["id"]], load.over[job["id"]] = last, began, ended
            if last["state"] != "done" or [item["seed"] for item in last["items"]] != [number]:
                load.faults.append(f"job {number} is {last['state']}: {last['error']}")
            if len(load.jobs) % EVERY == 0:
                load.memory.append((len(load.jobs), server.memory()))

    def client() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                one(number)
            except Exception as error:
                with lock:
                    load.faults.append(f"job {number}: {error}")

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load


def ideal_latencies(load: Load) -> dict[str, float]:
    """Seconds each job would take by the queueing ideal (see above)."""
    batches: dict[float, list[str]] = defaultdict(list)
    for name, job in load.jobs.items():
        batches[job["started"]].append(name)
    free, found = 0.0, {}
    for started in sorted(batches):
        names = batches[started]
        took = max(load.jobs[name]["finished"] for name in names) - started
        free = max(free, max(load.sent[name] for name in names)) + took
        for name in names:
            found[name] = free - load.sent[name]
    return found


def check_files(server: Server, load: Load, folder: Path, every: int) -> None:
    """Fetch some results: each belongs to its own job."""
    for name in list(load.jobs)[::every]:
        (found,) = server.client.download(name, folder / name)
        metadata = json.loads((found / "metadata.json").read_text(encoding="utf-8"))
        if metadata["provenance"]["seed"] != load.jobs[name]["items"][0]["seed"]:
            load.faults.append(f"the files of {name} belong to another job")


def stop_in_the_middle(model: Path, data: Path, server: Server, options: list[str]) -> dict[str, Any]:
    """Stop with jobs running and waiting; the next server finishes them."""
    names = [server.client.submit("joint", prompt="later", seed=n, steps=60 + n)["id"] for n in range(8)]
    code, seconds = server.stop()
    again = Server(model, data, *options)
    states = [again.client.wait(name)["state"] for name in names]
    code_again, _ = again.stop()
    return {"exit_codes": [code, code_again], "stop_seconds": seconds, "kept": states.count("done")}


def report(load: Load, seconds: float) -> dict[str, Any]:
    """The numbers of one run."""
    ideal = ideal_latencies(load)
    latency = {name: load.over[name] - load.sent[name] for name in load.jobs}
    settled = [size for count, size in load.memory if count >= min(SETTLED, load.memory[-1][0] // 2)]
    batches = defaultdict(int)
    for job in load.jobs.values():
        batches[job["started"]] += 1
    p95, best = (float(np.percentile(list(values.values()), 95)) for values in (latency, ideal))
    return {
        "jobs": len(load.jobs),
        "faults": load.faults,
        "seconds": seconds,
        "jobs_per_second": len(load.jobs) / seconds,
        "jobs_per_batch": len(load.jobs) / len(batches),
        "latency_p50": float(np.percentile(list(latency.values()), 50)),
        "latency_p95": p95,
        "ideal_p95": best,
        "p95_over_ideal": p95 / best,
        "memory_mb": [round(size, 1) for _, size in load.memory],
        "memory_growth": max(settled) / settled[0] - 1,
    }


def measure(folder: Path, jobs: int, clients: int, batch_size: int) -> dict[str, Any]:
    """All of it below one folder."""
    model, data = write_model(folder / "model"), folder / "data"
    options = ["--batch-size", str(batch_size), "--max-queue", str(max(100, 2 * clients))]
    server = Server(model, data, *options)
    try:
        for number in range(3):  # each task once: first calls are slow
            task, fields = request(number, files())
            server.client.wait(server.client.submit(task, **fields)["id"])
        started = time.monotonic()
        load = run_load(server, jobs, clients)
        found = report(load, time.monotonic() - started)
        check_files(server, load, folder / "files", max(1, jobs // 20))
        found |= stop_in_the_middle(model, data, server, options)
    finally:
        if server.process.poll() is None:
            server.process.kill()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        found = measure(Path(folder), arguments.jobs, arguments.clients, arguments.batch_size)
    found |= {
        "clients": arguments.clients,
        "batch_size": arguments.batch_size,
        "load_of_the_computer_before": load_before,
    }
    for name, value in found.items():
        shown = f"{value:.3f}" if isinstance(value, float) else value
        print(f"{name:<30}{shown}")
    _report.write(arguments.json, found, packages=("fastapi", "uvicorn"))


if __name__ == "__main__":
    main()
