"""Wrap a DEK into a record, and unwrap it again, on the token or in software."""
