"""The exceptions a user can meet; each message is one line saying what was wrong and what to do.

Recipes and evaluation scripts print a `UserError` as `error: <message>` and exit with code 2;
every other exception is a fault of this project and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Base of everything a user can cause and mend."""


class ConfigError(UserError, ValueError):
    """An option has an impossible value; the message names field, got and expected."""


class DataError(UserError, ValueError):
    """Input data is unusable; the message names file, line and reason."""


class CheckpointError(UserError):
    """A checkpoint or adapter folder is missing, incomplete, corrupt or made for something else."""


class NonFiniteError(UserError, RuntimeError):
    """The loss or a gradient became NaN or infinite; no parameter was changed by that step."""


def first_line(error: Exception) -> str:
    """Return what an error says in its first line, its type if nothing, for a message of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
