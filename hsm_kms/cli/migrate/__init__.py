"""Provide `hsm-kms migrate`: have the API server re-encrypt stored objects."""
