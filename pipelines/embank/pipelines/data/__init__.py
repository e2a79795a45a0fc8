"""Data: raw logs to prepared folders (`prepare`), known data sets (`catalog`), generated logs, and the training
loader."""
