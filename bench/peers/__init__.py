"""Compare hsm-kms with plugins of others, under the same load."""
