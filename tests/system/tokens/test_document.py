"""hsm-kms accepts the configurations of docs/compatibility.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hsm_kms.config import load as configuration
from tests.system.tokens.conftest import BRANDS

DOCUMENT = Path(__file__).parents[3] / "docs" / "compatibility.md"
BLOCKS = re.findall(
    r"^```yaml\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE
)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_configuration(directory, number):
    """Each configuration in the document loads."""
    file = directory / "config.yaml"
    file.write_text(BLOCKS[number])

    assert configuration.load(file).token.module.is_absolute()


def test_tokens_that_were_run():
    """The table in the document has a row for each brand of the suite."""
    table = DOCUMENT.read_text().split("## Tested tokens")[1].split("###")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]

    assert len(BRANDS) == len(rows)
