"""Keep the worker processes, and lend their sessions: the server's side of a token."""
