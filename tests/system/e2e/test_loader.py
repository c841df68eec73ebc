"""The API server's own encryption code against the plugin, calls counted."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.encryption_cases import CASES, right, text_of
from tests.harness.manifests import MANIFESTS, names
from tests.harness.wait import patient
from tests.system.e2e.plugin import Plugin, running_plugin
from tests.system.e2e.stored import parse_v2
from tests.system.e2e.world import NAMES, encryption, prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120, func_only=True)]

OBJECTS = 1_000
LOADER_TIMEOUT = patient(100.0)  # seconds
HEALTHY = [""]


def run(loader: Path, *args: object) -> Any:
    """Run the loader in one of its modes and return its report."""
    done = subprocess.run(
        [loader, *map(str, args)],
        capture_output=True,
        check=False,
        timeout=LOADER_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def plugin(included: None, new_folder: Callable[[], Path]) -> Iterator[Plugin]:
    """A plugin with a key of its own."""
    with running_plugin(new_folder() / "plugin") as running:
        yield running


@pytest.fixture(scope="module")
def report(loader: Path, plugin: Plugin, new_folder: Callable[[], Path]) -> Any:
    """Count requests to the plugin over two loads, 1,000 writes and 1,000 reads."""
    folder = new_folder()
    config, relay = folder / "encryption.json", folder / "relay.sock"
    config.write_text(json.dumps(encryption(["v2"], relay)))
    drive = ["-config", config, "-listen", relay, "-plugin", plugin.socket]
    return run(loader, "drive", *drive, "-objects", OBJECTS)


def test_57_a_load_is_one_status_and_one_encrypt(report):
    """To load the configuration takes one Status and one Encrypt."""
    assert HEALTHY == report["first_load"]["health"]
    assert {"Status": 1, "Encrypt": 1} == report["first_load"]["calls"]


def test_58_writes_ask_the_plugin_nothing(report, plugin):
    """1,000 writes call the plugin never, and have its prefix and key_id."""
    values = [base64.b64decode(value) for value in report["writes"]["values"]]

    assert {} == report["writes"]["calls"]
    assert OBJECTS == len(values)
    assert {True} == {value.startswith(prefix("v2")) for value in values}
    assert {plugin.status().key_id} == {parse_v2(value).key_id for value in values}
    assert {NAMES["v2"]} == {parse_v2(value).provider for value in values}


def test_59_a_second_load_reads_all_with_one_decrypt(report):
    """1,000 reads after a second load take one Decrypt; none is stale or wrong."""
    assert HEALTHY == report["second_load"]["health"]
    assert {"Decrypt": 1} == report["reads"]["calls"]
    assert (0, 0) == (report["reads"]["stale"], report["reads"]["wrong"])


@pytest.mark.parametrize("name", names("EncryptionConfiguration"))
def test_the_manifests_are_what_the_api_server_takes(name, loader, plugin, new_folder):
    """The API server loads each EncryptionConfiguration of manifests/."""
    text = (MANIFESTS / name).read_text()
    here = new_folder() / "encryption.yaml"
    here.write_text(re.sub(r"unix:///\S+", f"unix://{plugin.socket}", text))

    loaded = run(loader, "load", here)[str(here)]

    assert ["secrets"] == loaded["resources"]
    assert set(HEALTHY) == set(loaded["health"])


@pytest.mark.parametrize("name", ["right", *CASES])
def test_check_refuses_what_the_api_server_refuses(name, loader, plugin, new_folder):
    """The API server refuses the files that the cases of `check` say it refuses."""
    file = new_folder() / "encryption.yaml"
    socket = plugin.socket
    case = CASES.get(name)
    file.write_text(text_of(case, socket) if case else json.dumps(right(socket)))
    done = subprocess.run(
        [loader, "load", file], capture_output=True, check=False, timeout=LOADER_TIMEOUT
    )

    assert (case.refused if case else False) == bool(done.returncode), done.stderr
