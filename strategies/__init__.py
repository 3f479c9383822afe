"""How updates become one model: tasks, algorithms, rounds, secure aggregation."""
