"""Serve the two gRPC APIs that a Kubernetes API server calls.

Read in this order: `server` builds the gRPC server, `v2` and `v1` are the two APIs,
`call` handles what all requests share, `codes` maps errors to status codes, `ports`
defines what the services need. `rpc` is generated.
"""
