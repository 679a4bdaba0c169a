"""Make a network smaller: low rank in the metric of the data. Torch only; no Trainer is needed.

``matrix_layers`` says which layers can be compressed, ``statistics`` runs the module on batches, ``low_rank`` has the
best map of each rank, ``sharing`` gives every layer its rank, ``structure`` puts the smaller layers in,
``compressing`` is :func:`compress`, and ``compressed`` its result.
"""
