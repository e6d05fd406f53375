"""The demo: a tiny SmolVLA teacher on a two-sided task, and the steps that reflow it."""
