"""Tests of a private training, of ours or of somebody else's: callables in, verdicts out."""
