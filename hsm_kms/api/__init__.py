"""The gRPC services: what a Kubernetes API server calls.

Reads in this order: `server` puts the services together, `v2` and `v1` are the
two APIs, `call` is the frame around each request, `codes` the table from error
to status code, `ports` what the services stand on. `rpc` is generated.
"""
