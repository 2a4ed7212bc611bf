"""Questions written by a language model over someone's own documents, which have none."""
