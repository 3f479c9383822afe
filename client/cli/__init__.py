"""The commands a device integrator calls."""
