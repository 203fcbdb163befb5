"""``mf doctor``: versions, devices, what is missing and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import typer

from modality_forcing import __version__

TORCH_PAGE = "see docs/install.md, or the selector on pytorch.org"


@dataclass
class Report:
    """What was found, as lines to read, and what to do about it."""

    lines: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    """Optional improvements."""
    broken: list[str] = field(default_factory=list)
    """Without these some command fails."""

    def add(self, name: str, text: str) -> None:
        """One line of the table."""
        self.lines.append(f"{name:<24}{text}")


def doctor() -> None:
    """Say what this machine can do, what is missing and how to get it."""
    report = Report()
    machine(report)
    packages(report)
    devices(report)
    weights(report)
    print("\n".join(report.lines))
    for title, texts in (("Missing", report.broken), ("Could be better", report.advice)):
        if texts:
            print(f"\n{title}:")
            print("\n".join(f"  - {text}" for text in texts))
    if not report.broken:
        print('\nReady: mf joint --prompt "a cozy sunlit kitchen with wooden cabinets"')
    raise typer.Exit(1 if report.broken else 0)


def machine(report: Report) -> None:
    """Program, Python, system, cores, memory."""
    report.add("modality-forcing", __version__)
    report.add("python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    report.add("cpu", f"{cores} cores{_memory()}")


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return ""
    return f", {size / 2**30:.0f} GiB memory"


def requirements() -> list[tuple[str, str, str]]:
    """(package, version wanted, extra it belongs to or "") as the installed package states them."""
    from importlib import metadata

    try:
        lines = metadata.requires("modality-forcing") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        match = re.match(
            r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*)(?:;.*extra\s*==\s*['\"](\w+)['\"])?", line
        )
        if match and match[1].lower() not in ("modality-forcing", "modality_forcing"):
            found.append((match[1], match[2].strip(), match[3] or ""))
    return found


def installed(package: str) -> str | None:
    """The version of an installed package, None when it is not there."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def packages(report: Report) -> None:
    """Every requirement with its version; missing and too old ones become advice."""
    for package, wanted, extra in requirements():
        if extra == "dev":
            continue
        version = installed(package)
        use = f" (for the extra {extra!r})" if extra else ""
        report.add(package, (version or "missing") + use)
        command = f'pip install "{f"modality-forcing[{extra}]" if extra else package + wanted}"'
        if version is None:
            if package == "torch":
                command = f"pip install torch ({TORCH_PAGE})"
            (report.advice if extra else report.broken).append(f"{package} is missing{use}: {command}")
        elif not _satisfies(version, wanted):
            report.broken.append(f"{package} {version} is installed, {wanted} is needed: {command}")


def _satisfies(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True  # pip has checked it at installation
    return SpecifierSet(wanted).contains(version, prereleases=True)


def devices(report: Report) -> None:
    """What PyTorch sees, and why it sees less than the machine has."""
    driver, cards = _nvidia()
    if driver:
        report.add("nvidia driver", f"{driver} ({', '.join(cards)})")
    if importlib.util.find_spec("torch") is None:
        return
    try:
        import torch
    except Exception as error:  # a broken installation raises nearly anything: OSError for a missing library
        report.broken.append(
            f"torch is installed but cannot be imported ({error}); reinstall it ({TORCH_PAGE})"
        )
        return
    from modality_forcing.devices import emulates_bfloat16  # it imports PyTorch, too

    report.add("pytorch build", f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA")
    slow = ", no bfloat16 instructions: train with precision=fp32"
    emulates = emulates_bfloat16(torch.device("cpu"))
    report.add("device cpu", f"{torch.get_num_threads()} threads{slow if emulates else ''}")
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        report.add(f"device cuda:{number}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        report.add("device mps", "available")
    if cards and not torch.cuda.is_available():
        if torch.version.cuda:
            report.advice.append(
                f"PyTorch was built for CUDA {torch.version.cuda} but sees no GPU: driver {driver} is too old"
                f" or CUDA_VISIBLE_DEVICES hides it; update the driver or take an older build ({TORCH_PAGE})"
            )
        else:
            report.advice.append(f"there is an NVIDIA GPU, but PyTorch is a CPU build ({TORCH_PAGE})")


def _nvidia() -> tuple[str, list[str]]:
    """Driver version and names of the cards, empty without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "", []
    try:
        answer = subprocess.run(
            [program, "--query-gpu=driver_version,name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "", []
    rows = [line.split(",", 1) for line in answer.stdout.splitlines() if "," in line]
    return (rows[0][0].strip() if rows else ""), [row[1].strip() for row in rows]


def weights(report: Report) -> None:
    """The embedded model and its text encoder."""
    folder = Path(__file__).resolve().parents[1] / "weights" / "lowpoly"
    files = [file for file in folder.glob("*.safetensors") if file.is_file()]
    if files and (folder / "config.json").is_file():
        report.add("model lowpoly", f"embedded, {sum(file.stat().st_size for file in files) / 1e6:.0f} MB")
    else:
        report.add("model lowpoly", "missing")
        report.broken.append(
            "the embedded model's files are not in this installation: reinstall modality-forcing"
        )
