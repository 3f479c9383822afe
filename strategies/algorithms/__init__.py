"""Aggregation algorithms: pure functions over explicit state."""
