"""The small teacher and the steps of the demo."""
