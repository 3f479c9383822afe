"""Deltas: a release as its difference from an earlier one, decoded by devices in small memory."""
