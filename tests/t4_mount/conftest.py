"""Fixtures of the file system tests; see fixtures.py."""

from __future__ import annotations

from tests.t4_mount.fixtures import (
    area,
    guarded,
    pytest_configure,
    pytest_generate_tests,
    pytest_runtest_setup,
    start,
    tree,
    trees,
)

__all__ = [
    "area",
    "guarded",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_runtest_setup",
    "start",
    "tree",
    "trees",
]
