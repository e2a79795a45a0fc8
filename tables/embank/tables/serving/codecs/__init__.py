"""How matrices of rows are held while they are served: one codec a file, listed in `registry`."""
