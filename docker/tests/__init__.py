"""Integration tests between containers: a server host and client hosts on a network of their own."""
