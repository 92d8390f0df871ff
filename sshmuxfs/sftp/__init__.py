"""SFTP version 3 and OpenSSH's extensions: codec, client core, and one channel in trio.

Lowest layer of the file system: imports nothing of `sshmuxfs.tree`, `sshmuxfs.io` or pyfuse3.
"""
