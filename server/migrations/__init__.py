"""How the tables of `server.tables` came to be, step by step; `SqlStore.open` runs what is due."""
