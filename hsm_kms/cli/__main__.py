"""Run `hsm-kms` as `python -m hsm_kms.cli`."""

from hsm_kms.start import main

main()
