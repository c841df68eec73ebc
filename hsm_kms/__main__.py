"""Run `hsm-kms` as `python -m hsm_kms`."""

from hsm_kms.start import main

if __name__ == "__main__":
    main()
