"""Language models with memory tables: a small one of our own, and adapters for those of Hugging Face."""
