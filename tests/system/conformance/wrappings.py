"""The three wrapping modes, and marks for the tests of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.harness.plugin import Plugin

WRAPPINGS = ("token", "fallback", "software")

# Marks for a test that uses `served` of each of these wrapping modes. While the token
# is available, fallback does the same as token: a test that neither takes the token
# away nor gives a short deadline needs two of the three.
each_wrapping = pytest.mark.parametrize("served", WRAPPINGS, indirect=True)
both_kinds = pytest.mark.parametrize("served", ["token", "software"], indirect=True)
in_software = pytest.mark.parametrize("served", ["software"], indirect=True)


def apis(v2: str, v1: str | None = None) -> dict[str, Any]:
    """Return the section `apis` with both APIs enabled, v1 like v2 if it is None."""
    return {
        "v2": {"enabled": True, "wrapping": v2},
        "v1": {"enabled": True, "wrapping": v1 or v2},
    }


def wrapping_of(plugin: Plugin) -> str:
    """Return the wrapping mode of v2."""
    return plugin.config["apis"]["v2"].get("wrapping", "token")
