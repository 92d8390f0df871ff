"""What the tests stand on: real servers, real masters, real mounts, and the checks for what they leave behind.

Nothing here imports `mux` or `sshmuxfs`: the programs under test are started as a user starts them. Only our own SFTP
server (evil_sftp and what it stands on) takes the project's codec, and sftp_process puts a client on the real one.
`scripts/demo` and tests/bench use this too.
"""
