"""The operations called directly, without a kernel, over the real sftp-server."""
