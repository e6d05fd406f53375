"""Scripts that are no part of a package, imported by their files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def load_script(path: Path, *, named: bool = False) -> ModuleType:
    """A script as a module.

    Args:
        path: its file.
        named: whether other scripts are to find it by its name.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if named:
        sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
