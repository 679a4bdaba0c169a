"""The data's second moments, streamed once, and their spectrum: it knows samples and features, nothing of networks."""
