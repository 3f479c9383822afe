"""The operator API: REST and server-sent events, for operators with a token."""
