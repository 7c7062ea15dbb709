"""The audit on the synthetic cohort, where what is memorized and what can be inferred is known."""
