"""The joining side, in trio: a connection that somebody else holds, and byte streams of sessions on it.

One rule: nothing here holds an SSH connection or starts one. May be imported by `mux.cli` and by `sshmuxfs`.
"""
