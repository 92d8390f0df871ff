"""Cores and policies: pure, without a socket or a clock."""
