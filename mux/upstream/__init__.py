"""The process that holds the one connection: asyncio and asyncssh. trio never comes here, nor does `mux.downstream`."""
