"""Language models with memory tables."""
