"""How a model is trained: collation, one loop for all methods, optimizers, atomic checkpoints."""
