"""Record who did what with which key: one JSON object for each event."""
