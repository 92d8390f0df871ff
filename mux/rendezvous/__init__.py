"""Finding each other: from a host as typed to the socket of a connection that is already open.

The one rule: synchronous, on `os`, `socket` and `subprocess` only, so that it can be called before any event loop
exists and from a thread of any of them. `target` asks ssh what the name means, `sockets` looks at what is there,
`roles` decides. May be imported by downstream, the commands, and sshmuxfs.
"""
