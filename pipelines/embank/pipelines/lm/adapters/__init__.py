"""Memory tables for causal language models of Hugging Face's transformers."""
