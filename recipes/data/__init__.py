"""Readers of the data sets that the recipes train on."""
