"""Provide the records that the tests of the state directory save."""

from __future__ import annotations

from hsm_kms.state_dir.directory import (
    FormerKey,
    LastKey,
    PinIdentity,
    PinRecord,
)

KEY = LastKey(
    key_id="abcdefghijklmnopqrstuvwxya.2026a",
    cka_id="686b6d7301",
    token_serial="0123456789abcdef",  # noqa: S106 - a serial number
    label="k8s-kek",
    since="2026-01-02T03:04:05+00:00",
)
BEFORE = FormerKey(
    key_id="abcdefghijklmnopqrstuvwxyb",
    since="2025-01-02T03:04:05+00:00",
    until="2026-01-02T03:04:05+00:00",
)
PIN = PinIdentity(device=1, inode=2, size=8, mtime_ns=3, ctime_ns=4)
REJECTED = PinRecord(
    identity=PIN, verdict="rejected", tries=1, function="C_Login", rv=0xA0
)
