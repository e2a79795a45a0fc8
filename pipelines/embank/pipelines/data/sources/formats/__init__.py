"""Raw formats that `prepare` reads: one file each, all on the interface of `base`, listed in `registry`."""
