"""DP-SGD with the patient as the unit: sampling, clipping, noise, accounting, and the ledger of what was spent."""
