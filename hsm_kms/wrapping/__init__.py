"""Turns a DEK into a record and back, whoever holds the key that wraps it."""
