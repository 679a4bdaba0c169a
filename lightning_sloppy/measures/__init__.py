"""From a Spectrum to Estimates: pure functions."""
