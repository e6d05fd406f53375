"""The console script `chordflow`: one file per verb; the only place that reads the command line."""
