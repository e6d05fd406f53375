"""The mathematics of flows: tensors in, tensors out, time from t = 1 (noise) to t = 0 (action)."""
