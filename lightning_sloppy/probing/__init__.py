"""The Trainer's side of a measurement: which samples, which loss, when, and how to leave no trace."""
