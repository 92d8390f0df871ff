"""Bytes of open files: what is read before it is asked, and written before it is acknowledged.

Stands on `sshmuxfs.sftp`, and on `sshmuxfs.tree` for the inode that a file is open on; imports nothing of pyfuse3.
"""
