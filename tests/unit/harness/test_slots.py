"""Test the module that renumbers slots, in workers on a real token."""

from __future__ import annotations

import json
from pathlib import Path

from tests.harness.slots.driver import Slots
from tests.harness.softhsm import softhsm_module


def test_other_numbers(make_plugin, hsm, directory):
    """A process that starts later sees the same token in another slot."""
    slots = Slots(directory, Path(softhsm_module()))
    plugin = make_plugin(hsm)
    plugin.merge("token", {"module": str(slots.module), "env": hsm.env | slots.env})
    plugin.write_config()

    def seen():
        listed = json.loads(plugin.cli("token", "list", "-o", "json").stdout)
        (found,) = [each for each in listed if each["label"] == "test"]
        return found["slot"], found["serial"]

    slot, serial = seen()
    slots.add(1000)

    assert (slot + 1000, serial) == seen()
    assert 0 == plugin.cli("check").returncode
