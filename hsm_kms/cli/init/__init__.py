"""Provide `hsm-kms init`: write the files of a node, from the project's manifests."""
