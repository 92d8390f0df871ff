"""Names, and what is known of them: the tree, attributes, owners, link targets, caches.

The one rule: no I/O and no waiting. What the server said comes in as data, what the kernel is told goes out as data.
"""
