"""Inspect the token in the background, and keep the state that Status reports."""
