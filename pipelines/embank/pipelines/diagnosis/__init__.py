"""How a trained model uses its tables."""
