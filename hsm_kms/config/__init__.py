"""Read and validate the configuration file."""
