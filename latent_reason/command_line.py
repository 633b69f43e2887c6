"""What every script does with its command line: one-line errors, options as a dataclass."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from latent_reason.config import check, check_refinement_steps
from latent_reason.errors import ConfigError, UserError
from latent_reason.results import clean_text

Options = TypeVar("Options")


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's main function and exit.

    A `UserError` becomes one line on stderr and exit code 2, Ctrl-C one line and exit code 130, a
    reader that has gone exit code 141.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
        sys.exit(code)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except BrokenPipeError:  # what reads our lines, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def read_options(default: Options, words: Sequence[str], description: str) -> Options:
    """Read command line options on top of `default`, a dataclass; --help prints and exits.

    Raises:
        ConfigError: on an unknown option, with the nearest known one, or an impossible value.
    """
    import tyro  # here, since commands without such options are to start fast

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(type(default), args=words, default=default, description=description)
    except SystemExit as end:
        if not end.code:
            raise
    # tyro prints a title, the reason, rules between its parts and a hint at --help, in a box.
    lines = re.sub("[\u2500-\u257f]", " ", clean_text(box.getvalue())).splitlines()[1:]
    text = " ".join(line.strip() if re.search(r"\w", line) else ";" for line in lines)
    text = text.partition("; For full helptext")[0].strip(" ;")
    # A class or a group of options that it could not make; an option is left to be named.
    text = re.sub(r"^Error parsing ([A-Za-z][\w.]*: )?", "", text)
    raise ConfigError(f"{text.replace(' ;', ';')}; see --help")


class Parser(argparse.ArgumentParser):
    """A parser of the command line whose errors are one line, as those of the recipes."""

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def check_evaluation(
    options: argparse.Namespace, counts: Sequence[str], files: Sequence[str]
) -> None:
    """Check --refinement-steps and other options of an evaluation before anything is loaded.

    Args:
        options: what was given.
        counts: names of options that are None or at least 1.
        files: names of options that are None or a file in a folder that exists.

    Raises:
        ConfigError: naming the option.
    """
    for name in counts:
        value = getattr(options, name)
        check(value is None or value >= 1, name, value, "at least 1")
        check(value is None or value <= 10**9, name, value, "at most 1,000,000,000")
    check_refinement_steps(options.refinement_steps)
    for name in files:
        path = getattr(options, name)
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{name}: there is no folder {path.parent}; make it first")
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            raise ConfigError(f"{name}: {path} cannot be written as a file; choose another")
