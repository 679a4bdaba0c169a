"""When to measure, and whom to tell. No formula, no tensor algebra, no tag strings."""
