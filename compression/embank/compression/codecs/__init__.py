"""Codecs that methods make while they train: grids, entries that are not zero, codes of centroids."""
