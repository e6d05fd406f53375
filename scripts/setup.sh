#!/bin/sh
# Set up .venv: Python 3.12, the packages of requirements.lock, and this repository's own packages, editable.
#
# Needs python3.12 or uv on the PATH; either is enough. What is done once is not done again: a stamp in .venv
# keeps a hash of all that the set-up depends on. A set-up that was cut short leaves a mark and is begun anew,
# and so is one whose checkout has moved, since a virtual environment holds its own path.
set -eu

# Build tools write the checkout's path in the locale's encoding; without this word, Python picks UTF-8 by itself.
case ${LC_ALL:-} in C | POSIX) unset LC_ALL ;; esac

cd "$(dirname "$0")/.."
root=$(pwd -P)
venv=.venv
python=$venv/bin/python
stamp=$venv/.chordflow-setup
unfinished=.setup-stamp-unfinished
log=$venv/setup.log

say() { printf 'chordflow: %s\n' "$*"; }
stop() {
    printf 'chordflow: %s\n' "$*" >&2
    exit 1
}

# `command -v` is not enough: one of pyenv's shims may stand on the PATH with no Python behind it.
is_wanted_python() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; }
find_python() {
    for candidate in python3.12 python3 python "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.12*/bin/python3.12; do
        if is_wanted_python "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
}

# All that the set-up depends on, in one hash. The venv's own Python computes it: it is there on every system.
fingerprint() {
    "$python" - scripts/setup.sh requirements.lock pyproject.toml packages/*/pyproject.toml <<'PYTHON'
import hashlib, pathlib, sys
digest = hashlib.sha256(sys.version.encode())
for name in sys.argv[1:]:
    path = pathlib.Path(name)
    if path.is_file():
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
print(digest.hexdigest())
PYTHON
}

# Run one step with its output in the log; where it fails, show the end of that and say which step it was.
step() {
    what=$1
    shift
    if ! "$@" >>"$log" 2>&1; then
        tail -n 25 "$log" >&2
        stop "could not $what; the lines above say why (all of them: $log)."
    fi
}

make_venv() {
    if [ -n "$uv" ]; then
        # Without a Python of its own kind on the machine, uv fetches one.
        if ! output=$(uv venv --quiet --python "${base_python:-3.12}" "$venv" 2>&1); then
            printf '%s\n' "$output" >&2
            stop "uv could not make $venv with Python 3.12; the lines above say why."
        fi
    elif ! output=$("$base_python" -m venv "$venv" 2>&1); then
        printf '%s\n' "$output" >&2
        stop "$base_python could not make $venv; on Debian and Ubuntu, install the package python3.12-venv."
    fi
}

if [ -e "$unfinished" ]; then
    rm -rf "$venv"
elif [ -f "$stamp" ]; then
    if ! is_wanted_python "$python"; then
        say "the Python behind $venv is gone: setting it up anew."
        rm -rf "$venv"
    elif [ "$(sed -n 2p "$stamp")" != "$root" ]; then
        say "this checkout has moved: setting up $venv anew."
        rm -rf "$venv"
    elif [ "$(sed -n 1p "$stamp")" = "$(fingerprint)" ]; then
        exit 0
    fi
elif [ -e "$venv" ] && ! is_wanted_python "$python"; then
    stop "$venv is there, but it holds no Python 3.12: move it away or delete it, and run this again."
fi

started=$(date +%s)
uv=$(command -v uv || true)
if [ ! -e "$venv" ]; then
    base_python=$(find_python)
    if [ -z "$uv" ] && [ -z "$base_python" ]; then
        stop "neither python3.12 nor uv is on the PATH: install one of them, and run this again."
    fi
    say "setting up $venv with Python 3.12; this takes some minutes, once."
    : >"$unfinished"
    make_venv
else
    say "bringing $venv up to date."
fi
rm -f "$stamp"
: >"$log"

if [ -z "$uv" ]; then
    if ! "$python" -m uv --version >/dev/null 2>&1; then
        "$python" -m pip --version >/dev/null 2>&1 || step "install pip" "$python" -m ensurepip
        step "install uv" "$python" -m pip install --quiet --disable-pip-version-check uv
    fi
    set -- "$python" -m uv
else
    set -- uv
fi
# Compiled as it is installed, a package need not be compiled when the first command imports it.
say "installing the packages of requirements.lock."
step "install the packages of requirements.lock" "$@" pip install --python "$python" --compile-bytecode -r requirements.lock
set -- "$@" pip install --python "$python" --no-deps --editable .
for project in packages/*/pyproject.toml; do
    if [ -f "$project" ]; then set -- "$@" --editable "${project%/pyproject.toml}"; fi
done
step "install chordflow itself" "$@"
# The paths of editable packages are read in the locale's encoding, and a Python that cannot read one does not start:
# made relative to the file that holds them, they contain no letter of the checkout's own path.
for file in "$venv"/lib/python3.12/site-packages/*.pth; do
    [ -f "$file" ] || continue
    path=$(cat "$file")
    case $path in "$root"/*) printf '../../../../%s\n' "${path#"$root"/}" >"$file" ;; esac
done

printf '%s\n%s\n' "$(fingerprint)" "$root" >"$stamp.new"
mv "$stamp.new" "$stamp"
rm -f "$unfinished"
say "set up in $(($(date +%s) - started)) s."
