"""Whose connection the commands are about: a master of OpenSSH, and an upstream of ours."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.support.master import Master
from tests.support.sshd import Sshd
from tests.support.upstream import Upstream


@pytest.fixture(params=[Master, Upstream], ids=["openssh", "sshmux"])
def holder(request: pytest.FixtureRequest, stack: ExitStack, sshd: Sshd) -> Master:
    """Who holds a connection of this test's own, at the configured control path."""
    kind: type[Master] = request.param
    return stack.enter_context(kind(sshd))


@pytest.fixture
def upstream(stack: ExitStack, sshd: Sshd) -> Upstream:
    """An upstream of ours, at the configured control path."""
    return stack.enter_context(Upstream(sshd))
