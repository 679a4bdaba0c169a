"""From a measurement to what people look at: tags, writers, histograms, layout, progress and the closing summary."""
