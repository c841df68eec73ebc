"""Fixtures: a server on the fault shim."""

from tests.system.faults.conftest import make_rig

__all__ = ["make_rig"]
