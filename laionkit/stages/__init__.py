"""The stages in flow order: metadata, fetch, embed, score, index, subset, query."""
