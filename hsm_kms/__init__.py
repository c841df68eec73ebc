"""Kubernetes KMS provider whose key-encryption key never leaves a PKCS#11 token."""

__version__ = "0.1.0"
