"""`python -m hsm_kms.cli`."""

from hsm_kms.cli import main

main()
