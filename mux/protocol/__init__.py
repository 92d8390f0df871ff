"""Protocol cores: bytes and file descriptors in, events and bytes out.

One rule: no socket, clock, event loop, `os` or logging in this package. A core that meets broken input raises
`RemoteProtocolError` and nothing else. `wire.py` may be imported by anybody; the others by `mux` only.
"""
