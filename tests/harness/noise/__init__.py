"""Build a PKCS#11 module that prints to stdout and stderr."""

from __future__ import annotations

from pathlib import Path

from tests.harness.compiled import shared_library
from tests.harness.shim.driver import INCLUDE, require_compiler
from tests.harness.softhsm import softhsm_module

LINES = ("NOISE at load", "NOISE at login", "NOISE at exit")


def noisy_module() -> Path:
    """Return the path of the module; set `noisy_env()` for it."""
    require_compiler()
    source = Path(__file__).with_name("noise.c")
    return shared_library(source, "-I", str(INCLUDE), "-ldl")


def noisy_env() -> dict[str, str]:
    """Return the environment in which the module prints, and the loader too."""
    return {"NOISE_MODULE": softhsm_module(), "LD_DEBUG": "libs"}
