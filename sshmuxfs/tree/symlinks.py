"""What the kernel is told of a link's target. Pure.

The one rule: under `contain` no target that leaves the kernel can lead out of the mount. A client resolves link targets
against its own names, so a server that chooses them freely chooses which local file a program opens. The test is
sshfs's since 3.7.6 (CVE-2026-47187), and lexical on purpose: absolute, or any `..` component, is refused. What `..`
means behind another link cannot be known from the text, so nothing is normalised, not even where it looks harmless.

`transform` rewrites an absolute target inside the mounted directory so that it is relative to the link; the result is
then judged like any other. Showing what links lead to (follow_symlinks) is asked of the server and has no part here.

Imported by `sshmuxfs.operations` and `sshmuxfs.mount`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LONGEST_TARGET_BYTES: Final = 4095  # PATH_MAX of Linux without its NUL; the kernel takes no longer answer


@dataclass(frozen=True, slots=True)
class SymlinkPolicy:
    """What a mount does with link targets."""

    contain: bool
    transform: bool
    base: bytes  # absolute path, on the server, of what is mounted


def target_for_kernel(policy: SymlinkPolicy, link_path: bytes, target: bytes) -> bytes | None:
    """Return the target to show for the link at `link_path` (absolute, on the server); None: refuse it with EPERM.

    A target that no local file system could hold (empty, with a NUL, too long) is refused under every policy.
    """
    if policy.transform and target.startswith(b"/"):
        target = _relative(policy.base, link_path, target) or target
    if not target or b"\0" in target or len(target) > LONGEST_TARGET_BYTES:
        return None
    if policy.contain and (target.startswith(b"/") or b".." in target.split(b"/")):
        return None
    return target


def _relative(base: bytes, link_path: bytes, target: bytes) -> bytes | None:
    """Return `target` relative to the directory of the link; None where it is not provably inside `base`."""
    above, link, names = _components(base), _components(link_path), _components(target)
    depth = len(above)
    if b".." in above or b".." in link or b".." in names:
        return None
    if not base.startswith(b"/") or len(link) <= depth or link[:depth] != above or names[:depth] != above:
        return None
    directory = link[:-1]
    shared = depth
    while shared < min(len(directory), len(names)) and directory[shared] == names[shared]:
        shared += 1
    steps = [b".."] * (len(directory) - shared) + names[shared:]
    # A slash or `/.` at the end says that the target has to be a directory.
    tail = b"/" if steps and target.endswith((b"/", b"/.")) else b""
    return (b"/".join(steps) or b".") + tail


def _components(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]
