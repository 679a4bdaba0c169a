"""The matrices as operators, or as Gram matrices. Torch only."""
