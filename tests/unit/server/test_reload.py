"""One table decides the effect of a changed setting."""

from __future__ import annotations

from hsm_kms.config.schema import sections
from hsm_kms.server.reload import CHANGES


def test_every_setting_has_a_row():
    """Each setting has exactly one row: its own, or the row of its section."""
    found = sections()
    settings = {
        f"{path}.{name}".lstrip(".")
        for path, section in found.items()
        for name in section.model_fields
    } - set(found)
    rows = {
        name: [row for row in CHANGES if name == row or name.startswith(f"{row}.")]
        for name in settings
    }

    assert {} == {name: row for name, row in rows.items() if len(row) != 1}
    assert set(CHANGES) == {row for found in rows.values() for row in found}
