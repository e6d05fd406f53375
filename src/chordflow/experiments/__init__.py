"""Jobs that need training and evaluation: the main job, rounds, comparisons, studies."""
