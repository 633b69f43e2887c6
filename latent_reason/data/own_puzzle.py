"""Puzzles that a user names on the command line, built in or of their own: my_puzzle:Futoshiki."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module

from latent_reason.data.kinds import find_puzzle
from latent_reason.data.puzzle_check import require_parts
from latent_reason.data.puzzles import Puzzle
from latent_reason.errors import ConfigError

MAX_SYMBOLS = 255
"""Tokens are kept as bytes, and 0 is padding."""


def named_puzzle(name: str) -> Puzzle:
    """Return a puzzle by a name that is trusted, since "module:Name" runs code.

    Names from files, such as config.json of a model folder, belong to `find_puzzle`.

    Args:
        name: as for `find_puzzle`, or "module:Name": a class or function that gives a `Puzzle`
            without arguments, in a module that Python finds or that lies in the current folder.

    Raises:
        ConfigError: there is no such puzzle, or what it gives is none that can be used.
    """
    if ":" not in name:
        return find_puzzle(name)
    match = re.fullmatch(r"(\w+(?:\.\w+)*):(\w+)", name)
    if match is None:
        raise ConfigError(f"puzzle: got {name!r}, expected module:Name, such as my_puzzle:Hexagons")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(import_module(match[1]), match[2], None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{match[1]}.".startswith(f"{error.name}."):
            raise  # a module that the user's module lacks
        raise ConfigError(
            f"puzzle: got {name!r}, but there is no module {error.name}; run from its folder"
        ) from error
    if not callable(found):
        raise ConfigError(
            f"puzzle: got {name!r}, but module {match[1]} has no class or function {match[2]}"
        )
    try:
        puzzle = found()
    except TypeError as error:
        raise ConfigError(f"puzzle: {name} is not made without arguments ({error})") from error
    if not isinstance(puzzle, Puzzle):
        kind = type(puzzle).__name__
        raise ConfigError(f"puzzle: {name} gives a {kind}, expected a Puzzle of data/puzzles.py")
    for field in ("name", "height", "width", "alphabet"):
        if not hasattr(puzzle, field):
            raise ConfigError(f"puzzle: {name} lacks the attribute {field}; see data/puzzles.py")
    symbols = puzzle.alphabet
    if not 1 <= len(symbols) == len(set(symbols)) <= MAX_SYMBOLS:
        raise ConfigError(
            f"puzzle: {name} has an alphabet of {len(symbols)} characters, expected 1 to "
            f"{MAX_SYMBOLS}, all different"
        )
    if puzzle.blank and puzzle.blank != symbols[0]:
        raise ConfigError(
            f"puzzle: {name} has the blank {puzzle.blank!r}; put it first in its alphabet"
        )
    if type(puzzle).valid is not Puzzle.valid and type(puzzle).conflicts is Puzzle.conflicts:
        raise ConfigError(
            f"puzzle: {name} has a rule (valid) but does not say what breaks it; write conflicts"
        )
    require_parts(puzzle)
    return puzzle
