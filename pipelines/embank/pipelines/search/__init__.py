"""Searching the shape of a configuration's tables, or a whole configuration, as an Optuna study."""
