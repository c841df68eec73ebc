"""Assemble the parts for one configuration, serve, reload and stop."""
