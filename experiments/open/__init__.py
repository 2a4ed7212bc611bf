"""Open-corpus evaluation: all paragraphs of the evaluation questions are one collection."""
