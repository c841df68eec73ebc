"""Provide `hsm-kms etcd`: count, explain and verify what the API server stored."""
