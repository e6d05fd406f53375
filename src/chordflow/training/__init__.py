"""From couplings to a student: initialisation and freezing, methods, the loop, checkpoints."""
