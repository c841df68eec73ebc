"""Describe the machine and the versions, without names of hosts or users."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from hsm_kms import __version__

_PACKAGES = ("grpcio", "cryptography", "python-pkcs11", "msgspec")


def describe() -> dict[str, str]:
    """Return what figures depend on, by name."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _found(Path("/proc/cpuinfo"), r"model name\s*: (.*)"),
        "cores": str(os.cpu_count()),
        "memory": _gibibytes(_found(Path("/proc/meminfo"), r"MemTotal:\s*(\d+) kB")),
        "system": _found(Path("/etc/os-release"), r'PRETTY_NAME="(.*)"'),
        "kernel": platform.release(),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "hsm-kms": f"{__version__}{_commit()}",
        "Python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "SoftHSM": _said("softhsm2-util", "--version"),
        "h2load": _said("h2load", "--version").removeprefix("h2load "),
        "Go": _said("go", "env", "GOVERSION").removeprefix("go"),
    }


def _found(file: Path, pattern: str) -> str:
    found = re.search(pattern, file.read_text()) if file.exists() else None
    return found[1].strip() if found else "unknown"


def _gibibytes(kilobytes: str) -> str:
    return f"{int(kilobytes) / 2**20:.0f} GiB" if kilobytes.isdigit() else kilobytes


def _commit() -> str:
    short = _said("git", "rev-parse", "--short", "HEAD")
    return "" if short == "unknown" else f" ({short})"


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "unknown"
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    lines = result.stdout.strip().splitlines()
    return lines[0] if lines and not result.returncode else "unknown"
