"""One kind of leak per file: light while the model trains, in full afterwards."""
