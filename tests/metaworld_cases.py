"""Whether Meta-World can be drawn on this machine."""

import pytest

from lerobot_env_metaworld_light import machine

try:
    machine.check_machine()
    nothing_to_render_with = ""
except RuntimeError as error:
    nothing_to_render_with = str(error)
drawn = pytest.mark.skipif(bool(nothing_to_render_with), reason=nothing_to_render_with or "never")
