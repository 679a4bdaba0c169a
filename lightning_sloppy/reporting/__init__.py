"""From a measurement to what people look at: tags, writers, histograms, layout, progress, summary, card, and pages.

Import its modules one by one: those about records work without importing Lightning.
"""
