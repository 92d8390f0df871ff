"""What the tests stand on: real servers, real masters, real mounts, and the checks for what they leave behind.

Nothing here imports `mux` or `sshmuxfs`: the programs under test are started as a user starts them. `scripts/demo` and
tests/bench use it too.
"""
