"""Runs a program that ends with the process that started this one.

python -m hsm_kms.pdeathsig PPID PROGRAM ARGUMENT...
"""

from __future__ import annotations

import os
import sys

from hsm_kms.hardening import die_with_parent


def main() -> None:
    """Become the program."""
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
