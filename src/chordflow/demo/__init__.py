"""The demo: a tiny SmolVLA teacher on a two-sided task, and the steps that reflow it.

`tiny_vlm` builds the VLM folder, `record` the demonstrations, `teacher` trains or places the teacher.
Imports nothing by itself, for it draws in torch, transformers and LeRobot.
"""
