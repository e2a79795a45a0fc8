"""Language models with memory tables: a small one of our own (`embank lm`), and adapters for those of Hugging Face."""
