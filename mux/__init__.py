"""Sharing one authenticated SSH connection between shells, transfers and mounts.

This package knows nothing of files or of FUSE and never imports `sshmuxfs` or `pyfuse3`. Its layers import downwards
only: `protocol` (sans-IO) <- `rendezvous` (blocking, sockets only) <- `downstream` (trio) <- `cli`. `errors` may be
imported by all.
"""
