"""Does the counterfactual score find the records that a model memorizes? Truth from paired half-models."""
