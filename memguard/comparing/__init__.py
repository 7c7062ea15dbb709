"""The referee: arms of training over the same patients and seeds, attacked alike and compared in pairs."""
