"""The three wrappings, and which of them a test is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.harness.plugin import Plugin

WRAPPINGS = ("token", "fallback", "software")

# Marks for a test that uses `served` of each of these wrappings. A well
# token serves fallback as it serves token: where no token is ever away, and no client
# in a hurry, two of them make all the difference.
each_wrapping = pytest.mark.parametrize("served", WRAPPINGS, indirect=True)
both_kinds = pytest.mark.parametrize("served", ["token", "software"], indirect=True)
in_software = pytest.mark.parametrize("served", ["software"], indirect=True)


def apis(v2: str, v1: str | None = None) -> dict[str, Any]:
    """The section of that name, both APIs enabled; v1 as v2 where None."""
    return {
        "v2": {"enabled": True, "wrapping": v2},
        "v1": {"enabled": True, "wrapping": v1 or v2},
    }


def wrapping_of(plugin: Plugin) -> str:
    """The wrapping of v2."""
    return plugin.config["apis"]["v2"].get("wrapping", "token")
