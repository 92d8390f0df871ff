"""The subcommands of `sshmux`, one noun a file, and what they have in common.

The one rule: a subcommand starts fast, since scripts call them in loops. What it needs is imported by itself, and no
event loop ever is. `reach` leads from a host to the process that holds its connection, `processes` and `unixsockets`
tell what the kernel knows of it, `upstreams` finds all there are. Imported by `mux.cli` alone.
"""
