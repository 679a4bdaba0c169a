"""Matrix-free algebra on symmetric operators: it knows vectors and products, nothing of networks."""
