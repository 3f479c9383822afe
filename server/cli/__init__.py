"""The commands an operator calls; all but `server init` and `server up` are REST clients."""
