"""Look at a table before a model: what its columns share, how many directions there are, and how sure that is."""
