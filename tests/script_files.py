"""Scripts that are no part of a package, imported by their files."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def load_script(path: Path) -> ModuleType:
    """A script as a module, which other scripts do not find by its name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def scripts_of(folder: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Imports scripts that import their neighbours by name, and forgets them all at the end.

    Several folders hold a `run.py`: what is forgotten here is what another test would get in place of its own.
    """
    path, before = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).is_relative_to(ROOT / "benchmarks"):
                del sys.modules[name]
