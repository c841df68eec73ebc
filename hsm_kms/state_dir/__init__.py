"""Keep in the state directory what must outlive the process."""
