"""Hold the keys of the token, and decide which one is current."""
