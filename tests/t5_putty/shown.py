"""What `sshmux status` tells of an upstream of ours."""

from __future__ import annotations

import json
from typing import Any

from tests.support.sshd import HOST
from tests.support.upstream import Upstream, sshmux


def status(upstream: Upstream) -> dict[str, Any]:
    """All of it."""
    done = sshmux("status", "--json", "-F", str(upstream.sshd.ssh_config), "-S", upstream.control_path, HOST)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def clients(upstream: Upstream) -> list[dict[str, Any]]:
    """PuTTYs that ride."""
    return [one for one in status(upstream)["clients"] if one["purpose"] == "putty" and one["software"]]
