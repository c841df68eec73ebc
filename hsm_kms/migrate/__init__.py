"""Have the API server re-encrypt stored objects.

Read the files in this order: `kubectl` starts the user's kubectl as a proxy; `api`
sends requests to the API server through it; `resources` finds out where a resource is
served; `listing` lists its objects, and gets past those that cannot be read, which
`unreadable` names; `rewrite` sends the objects back; `objects` compares what came back
with what was sent; `refusals` says why an object was not written; `journal` keeps the
progress; `manifest` makes a StorageVersionMigration, with which the cluster migrates on
its own.

No code here interprets an object: it is sent back byte for byte. It is never printed,
logged, written to disk or put into an argument; of a changed object the names of the
fields are printed, and no value.
"""
