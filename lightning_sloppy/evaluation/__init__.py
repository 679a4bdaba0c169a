"""From a module and a batch to outputs and a loss, leaving no trace on the module. Torch only."""
