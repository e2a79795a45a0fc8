"""Training, evaluation and inspection of CTR models from prepared data."""
