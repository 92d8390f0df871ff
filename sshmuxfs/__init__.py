"""A remote directory as a FUSE file system, over an SSH connection that is already open.

The one rule of this package: a mount is always a downstream. It joins a connection somebody else holds, opens an sftp
session on it, and has from then on a plain byte stream; what is known of sharing lies in `mux`. The arrows between the
modules are in docs/architecture.md.

Importing this costs nothing: `__version__` is looked up when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("sshmuxfs")
    except PackageNotFoundError:
        found = "(not installed)"
    globals()["__version__"] = found
    return found
