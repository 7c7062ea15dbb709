"""The full audit of a trained model: what the probes ask it, asked also of models that never saw the patient."""
