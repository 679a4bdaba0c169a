"""Fewer columns: repeated ones dropped by name, or the leading directions of those that stay."""
