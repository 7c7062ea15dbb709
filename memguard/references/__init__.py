"""Models that never saw a given patient."""
