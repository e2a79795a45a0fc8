"""Raw rows to what a model reads, by the rules and vocabularies of the data that it was trained on."""
