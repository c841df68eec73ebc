"""Have the API server store objects again, so that it encrypts them anew.

Reads in this order: `kubectl` starts the user's own kubectl as a proxy, `api` talks
to the API server through it, `resources` finds out where a resource is served,
`rewrite` does it, `refusals` says why an object was not written, `journal` remembers
how far it came, `manifest` has the API server do it by itself.

Nothing here knows what an object holds: its bytes go back as they came. They are
never printed, logged, written to disk or put into an argument.
"""
