"""Real programs at work on the same trees as tests.t4_mount; a program that is not installed is a failure."""
