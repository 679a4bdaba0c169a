"""What the commands share: help pages, messages for mistakes, JSON files, and Lightning's own verbs."""
