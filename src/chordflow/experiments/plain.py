"""Settings as JSON holds them."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

import draccus


def plain(config: Any) -> dict[str, Any]:
    """The settings of a config; environments of LeRobot's keep enumerations among theirs."""

    def value_of(item: object) -> Any:
        return item.value if isinstance(item, Enum) else str(item)

    settings: dict[str, Any] = json.loads(json.dumps(draccus.encode(config), default=value_of))
    return settings
