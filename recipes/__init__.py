"""Plain Lightning code to copy: a model, its data, and a monitor beside them."""
