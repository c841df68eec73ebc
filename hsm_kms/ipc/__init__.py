"""Define what the server process and a token worker say to each other."""
