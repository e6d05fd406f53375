#!/bin/sh
# Set up what the browser tests of reports need, once:
#
#   chromium          Debian's package, by apt-get, system-wide, unless `chromium` is on the PATH already;
#                     asks for root's rights (sudo) where it does not have them
#   playwright-core   from npm, into .browser/node_modules: drives Chromium; brings no browser of its own
#   axe-core          from npm, into .browser/node_modules: the accessibility check
#
# Needs node 18 or newer and npm. Versions of the npm packages are pinned in tests/browser/package.json. To undo it:
# delete .browser, and `apt-get remove chromium` if you do not want that either.
set -eu

cd "$(dirname "$0")/.."
target=.browser
say() { printf 'chordflow: %s\n' "$*"; }
stop() {
    printf 'chordflow: %s\n' "$*" >&2
    exit 1
}

command -v node >/dev/null && command -v npm >/dev/null ||
    stop "node and npm are not on the PATH: install them (Debian: apt-get install nodejs npm), and run this again."
major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
[ "$major" -ge 18 ] || stop "node is version $major; playwright-core needs 18 or newer."

if ! command -v chromium >/dev/null; then
    command -v apt-get >/dev/null || stop "chromium is not on the PATH and there is no apt-get: install chromium."
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || stop "chromium is missing: as root, apt-get install chromium."
        as_root=sudo
    fi
    say "installing Debian's chromium by apt-get."
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends chromium >/dev/null
fi

if cmp -s tests/browser/package.json "$target/package.json" && [ -f "$target/ready" ]; then
    exit 0
fi
say "installing playwright-core and axe-core from npm into $target."
rm -rf "$target"
mkdir "$target"
cp tests/browser/package.json "$target/package.json"
# No lock file: it would name a registry's host. No scripts of packages: none is needed.
(cd "$target" && npm install --silent --no-package-lock --ignore-scripts --no-audit --no-fund)
: >"$target/ready"
say "the browser tests can run: make test-browser."
