"""The server's side of the token: worker processes, and their sessions on loan."""
