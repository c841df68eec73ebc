"""Serve probes, metrics and the admin socket over HTTP."""
