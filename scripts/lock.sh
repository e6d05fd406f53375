#!/bin/sh
# Remake requirements.lock: every package that chordflow and its tools need, pinned, for every system at once.
# Pins stay where they still fit; `sh scripts/lock.sh --upgrade` takes the newest instead.
set -eu

cd "$(dirname "$0")/.."
# The environment package's own needs (gymnasium, numpy, lerobot) are a part of chordflow's.
set -- pip compile pyproject.toml --quiet --extra dev --universal --python-version 3.12 \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
    --output-file requirements.lock "$@"
if command -v uv >/dev/null; then uv "$@" >/dev/null; else .venv/bin/python -m uv "$@" >/dev/null; fi
