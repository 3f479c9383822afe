"""A fleet on one machine: in one process, or as real processes."""
