"""Training the student: initialisation and freezing, methods, the loop, checkpoints."""
