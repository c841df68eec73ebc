"""Build what a release consists of."""
