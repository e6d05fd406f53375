"""The `chordflow` command: one verb, then LeRobot-style options."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from chordflow import __version__
from chordflow.errors import UserError

VERBS = {
    "reflow": ("chordflow.cli.reflow", "train a student that acts in one or two steps, and measure it"),
    "relocate": ("chordflow.cli.relocate", "mend a checkpoint whose vision-language model folder has moved"),
    "demo": ("chordflow.cli.demo", "run the whole job on a small teacher that comes with chordflow"),
}


def usage() -> str:
    """What `chordflow --help` prints."""
    verbs = "\n".join(f"  {name:<10} {text}" for name, (_, text) in VERBS.items())
    return (
        "chordflow: reflow LeRobot flow-matching policies into students that act in one or two steps\n\n"
        f"usage: chordflow VERB [--option=value ...]\n\nverbs:\n{verbs}\n\n"
        "chordflow VERB --help lists the options of a verb, with their defaults."
    )


def main(argv: list[str] | None = None) -> int:
    """Runs a verb.

    Returns:
        0 where it went well, 2 for input that cannot be used, 130 where it was interrupted.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"chordflow {__version__}")
        return 0
    verb, options = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(f"chordflow: there is no verb {verb!r}; choose one of {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    try:
        # Only now: the libraries behind a verb take seconds to import and talk while they do.
        from chordflow.quiet import silence_libraries

        silence_libraries()
        import_module(VERBS[verb][0]).run(options)
    except UserError as error:
        print(f"chordflow {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nchordflow {verb}: interrupted; what was saved stands.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone, as with `chordflow reflow --help | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
