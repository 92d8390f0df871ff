"""The tests, lowest level first: t0_protocol, t1_cores, t2_join, t3_operations, t4_mount, t5_interop. bench/ times."""
