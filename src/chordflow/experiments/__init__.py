"""What needs training and evaluation together: the main job."""
