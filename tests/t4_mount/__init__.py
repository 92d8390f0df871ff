"""File system behaviour, each test on a plain directory first, then on a mount: a wrong expectation shows on the
directory.
"""
