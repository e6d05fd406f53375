"""The `chordflow` command: one verb, then LeRobot-style options."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from chordflow import __version__, stopping
from chordflow.cli import help
from chordflow.errors import MACHINE_ERRORS, UserError, ran_out_of_memory, worker_died
from chordflow.quiet import load
from chordflow.refusing import alike, meant

VERBS = {
    "diagnose": "say before any training whether it is worth it for a checkpoint",
    "reflow": "train a student that acts in one or two steps, and measure it",
    "evaluate": "compare policies with their teacher: gaps, latency, paired episodes",
    "export": "make a folder that a robot runs without PyTorch",
    "report": "make a page, a table and a model card from what was measured",
    "couple": "keep a teacher's couplings on disk, for many trainings",
    "study": "answer one question about reflow by several trainings side by side",
    "relocate": "repair a checkpoint whose vision-language model folder has moved",
    "demo": "run the whole job on a small teacher that comes with chordflow",
}
"""What every verb does; a function of its name in `chordflow.cli.jobs` runs it."""

ALONE = ("report", "demo")
"""Verbs that have a module of their own: what needs no PyTorch, and what needs the environment of the demo."""

VERBOSE = "--verbose"
"""An option of the output of every verb."""

SAID = (f"{VERBOSE}=true", f"{VERBOSE}=false")
"""How else it may be written."""


def usage() -> str:
    """What `chordflow --help` prints."""
    verbs = "\n".join(f"  {name:<10}{text}" for name, text in VERBS.items())
    return (
        "chordflow: LeRobot flow-matching policies become students that act in one or\n"
        f"two steps\n\nusage: chordflow VERB [--option=value ...]\n\nverbs:\n{verbs}\n\n"
        "chordflow VERB --help      the options that people set, with their defaults\n"
        "chordflow VERB --help=all  all of them\n"
        "chordflow VERB --verbose   prints all findings and tables, not the summary alone\n"
        "chordflow --version        the version"
    )


_SIZES = {
    "couple": "--batch_size or --buffer.block_size",
    "diagnose": "--measure.batch_size",
    "evaluate": "--eval.batch_size or --measure.batch_size",
    "reflow": "--batch_size, --buffer.num_observations or --measure.batch_size",
    "study": "--batch_size, --buffer.num_observations, --measure.batch_size or --eval.batch_size",
}
"""What takes less memory, by verb."""


def main(argv: list[str] | None = None) -> int:
    """Runs a verb.

    An error of the user or the machine is printed in one line; a fault of chordflow's own keeps its traceback.

    Returns:
        0 where it went well, 2 for input that cannot be used or a machine that refuses, 130 where it was
        interrupted, 143 where SIGTERM ended it.
    """
    arguments = sys.argv[1:] if argv is None else argv
    verb = arguments[0] if arguments else "help"
    try:
        if verb in (*help.HELPS, "help", "--version"):
            print(f"chordflow {__version__}" if verb == "--version" else usage(), flush=True)
            return 0 if arguments else 2
        verb, *options = help.renamed(arguments)
        if verb not in VERBS:
            near = meant([name for name in VERBS if alike(verb, name)])
            instead = help.GONE_VERBS.get(verb, near or f"choose one of {', '.join(VERBS)}.")
            print(f"chordflow: there is no verb {verb!r}; {instead}", file=sys.stderr)
            return 2
        _run(verb, options)
    except UserError as error:
        return _refuse(verb, str(error))
    except KeyboardInterrupt as interrupt:
        # A terminal has just shown ^C in the same line.
        start = "\n" if sys.stderr.isatty() else ""
        notes = getattr(interrupt, "__notes__", ["what was saved stands; give the same command again."])
        said = f"{str(interrupt) or 'interrupted'}; {' '.join(notes)}"
        print(f"{start}chordflow {verb}: {said}", file=sys.stderr)
        _let_go(interrupt)
        return interrupt.code if isinstance(interrupt, stopping.Stopped) else 130
    except BrokenPipeError:
        # The reader of a pipe has gone, as with `chordflow reflow --help | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(verb, f"{where}{error.strerror}; {MACHINE_ERRORS[error.errno]} and try again.")
    except Exception as error:
        if sentence := worker_died(error):
            return _refuse(verb, sentence)
        if not ran_out_of_memory(error):
            raise
        text = "out of memory" + (f" ({str(error).splitlines()[0]})" if str(error) else "")
        what = f"lower {_SIZES[verb]}" if verb in _SIZES else "use a machine with more memory"
        return _refuse(verb, f"{text}; {what}.")
    return 0


def _let_go(error: BaseException | None) -> None:
    """Ends what an interrupt left half made, such as a loader's workers; Python would print how that fails."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _run(verb: str, arguments: list[str]) -> None:
    given = [word for word in arguments if word.partition("=")[0] == VERBOSE]
    options = [word for word in arguments if word not in given]
    if wrong := [word for word in given if word not in (VERBOSE, *SAID)]:
        raise UserError(f"{wrong[0].removeprefix('--')}: give true or false.")
    if help.answer(verb, options):
        return
    # Only now: the libraries behind a verb take seconds to import.
    from chordflow.console import show_all

    show_all(given[-1:] not in ([], [SAID[1]]))
    joins = verb == "study" and options[:1] == [help.JOINS]
    name = "report" if joins else verb if verb in ALONE else "jobs"
    with _interruptible(verb):
        module = load(f"chordflow.cli.{name}", *["what draws tables and pages"] * (name == "report"))
    if help.wants_help(options):
        help.answer_with(module.CONFIGS, verb, options)
        return
    with stopping.handled():
        getattr(module, "join" if joins else verb)(options)


@contextlib.contextmanager
def _interruptible(verb: str) -> Iterator[None]:
    """Leaves at once on a signal while libraries are imported: they turn it into errors of their own."""

    def leave(number: int, _frame: object) -> NoReturn:
        stopped = stopping.Stopped(number)
        os.write(2, f"chordflow {verb}: {stopped}; nothing had begun.\n".encode())
        os._exit(stopped.code)

    with stopping.taken(leave):
        yield


def _refuse(verb: str, message: str) -> int:
    print(f"chordflow {verb}: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
