"""Secure aggregation: both halves of the protocol, side by side."""
