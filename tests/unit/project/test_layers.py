"""Test who imports whom: the contracts of pyproject.toml, and their effect."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hsm_kms
from tests.harness.processes import without_coverage

ROOT = Path(__file__).parents[3]


def contracts():
    """Return the import-linter contracts by name."""
    text = (ROOT / "pyproject.toml").read_text()
    section = tomllib.loads(text)["tool"]["importlinter"]
    return {contract["name"]: contract for contract in section["contracts"]}


def modules_after(statement):
    """Return sys.modules of a fresh interpreter after one statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=without_coverage(),
    )
    return set(result.stdout.split())


def test_contracts_are_kept():
    """import-linter finds no broken contract."""
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as c; c()",
        ],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )

    assert 0 == result.returncode, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_no_module_is_outside_the_pkcs11_contract():
    """Every module of the package but the worker is forbidden to import pkcs11."""
    listed = set(contracts()["Only a worker process loads PKCS#11"]["source_modules"])
    present = {
        f"hsm_kms.{module.name}" for module in pkgutil.iter_modules(hsm_kms.__path__)
    }

    assert set() == present - listed - {"hsm_kms.worker"}


def test_the_server_loads_no_pkcs11():
    """The server process does not load PKCS#11."""
    loaded = modules_after("import hsm_kms.server.serve")

    assert set() == {name for name in loaded if name.split(".")[0] == "pkcs11"}


HEAVY = {
    *("asyncio", "cryptography", "google.protobuf", "grpc", "http.client", "msgspec"),
    *("pkcs11", "prometheus_client", "pydantic", "structlog", "yaml"),
}


def test_signals_come_first():
    """`serve` handles SIGTERM and SIGHUP before it imports any library."""
    loaded = modules_after(
        "import signal\n"
        "from hsm_kms.start import take_signals\n"
        "take_signals(['serve'])\n"
        "for number in (signal.SIGTERM, signal.SIGHUP):\n"
        "    assert callable(signal.getsignal(number)), number"
    )

    assert set() == {*HEAVY, "click", "hsm_kms.cli"} & loaded


def test_other_commands_leave_signals_alone():
    """A command that holds nothing ends by SIGTERM as any program does."""
    modules_after(
        "import signal\n"
        "from hsm_kms.start import take_signals\n"
        "take_signals(['keys', 'list'])\n"
        "assert signal.SIG_DFL == signal.getsignal(signal.SIGTERM)"
    )


def run_of(*arguments):
    """Return the statement that runs a command, which may fail."""
    return (
        "import contextlib, io, sys\n"
        "from hsm_kms.cli import main\n"
        f"sys.argv = {['hsm-kms', *arguments]!r}\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main()"
    )


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (("--version",), set()),
        (("--help",), set()),
        (("keys", "--help"), set()),
        (("etcd", "--help"), set()),
        (("status", "--socket", "/none"), set()),
        (("config", "show", "--help"), {"pydantic", "yaml"}),
        (("init", "--help"), {"msgspec", "pydantic", "yaml"}),
        (("serve", "--config", "/none"), {"asyncio", "pydantic", "yaml"}),
        (("etcd", "scan", "--help"), {"google.protobuf"}),
        (("migrate", "--help"), {"msgspec", "http.client"}),
        (
            ("keys", "list", "--help"),
            {"asyncio", "msgspec", "pydantic", "yaml"},
        ),
        (("check", "--help"), {"asyncio", "msgspec", "pydantic", "yaml"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_loads_only_what_it_uses(arguments, loaded):
    """A command does not load the libraries of another command."""
    assert set() == HEAVY & modules_after(run_of(*arguments)) - loaded


def test_a_worker_loads_no_grpc():
    """A worker loads no gRPC, no configuration file, no event loop, nothing slow."""
    loaded = modules_after("import hsm_kms.worker.__main__")

    assert "pkcs11" in loaded
    assert set() == loaded & {
        *("asn1crypto", "asyncio", "grpc", "inspect", "pathlib", "pydantic"),
        *("structlog", "typing_extensions", "yaml"),
    }
