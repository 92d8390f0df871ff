"""The timings: the same work through sshfs and through sshmuxfs, in one run, on connections of the same kind.

The rule: a time counts only when the answer was right, and only as a ratio to the other contender's time of the same
minute. `python -m tests.bench --help` names the options; nothing here is collected by pytest, and no test imports it.
"""
