"""The commands for trying things out: `demo`, `local`, `simulate`."""
