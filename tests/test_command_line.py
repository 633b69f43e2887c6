"""One-line errors, exit codes and options of every script."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from latent_reason.command_line import read_options, run_script
from latent_reason.errors import CheckpointError, ConfigError, DataError, UserError


@pytest.mark.parametrize("kind", [UserError, ConfigError, DataError, CheckpointError])
def test_what_a_user_can_mend_is_one_line(
    kind: type[UserError], capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise kind("file.jsonl:3:\n  wrong;\tmend it")

    with pytest.raises(SystemExit) as end:
        run_script(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: file.jsonl:3: wrong; mend it\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_the_exit_code_is_the_one_returned(returned: int | None, code: int) -> None:
    with pytest.raises(SystemExit) as end:
        run_script(lambda: returned)
    assert end.value.code == code


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_script(main)
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_reader_that_has_gone_ends_it_without_a_word() -> None:
    lines = "def main():\n    for _ in range(10**5):\n        print('line')\n"
    program = f"from latent_reason.command_line import run_script\n{lines}run_script(main)"
    pipe = subprocess.PIPE
    script = subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe)
    assert script.stdout is not None and script.stderr is not None
    script.stdout.readline()
    script.stdout.close()
    assert (script.wait(), script.stderr.read()) == (141, b"")


def test_faults_of_the_program_keep_their_traceback() -> None:
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_script(main)


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    """How fast."""

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise ConfigError(f"rate: got {self.rate}, expected at most 1")


@dataclass(frozen=True)
class Options:
    num_rows: int = 3
    """Rows to read, """
    inner: Inner = Inner()
    """More of it."""


def test_options_are_read_on_top_of_the_default() -> None:
    words = ["--inner.rate", "0.25"]
    assert read_options(Options(num_rows=7), words, "") == Options(7, Inner(0.25))


@pytest.mark.parametrize("color", ["", "1"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-rosw", "5"], "Unrecognized options: --num-rosw.*Perhaps you meant: --num-rows"),
        (["--inner.rate", "7"], r"^rate: got 7.0, expected at most 1; see --help"),
        (["--num-rows", "many"], r"^--num-rows: invalid literal for int\(\).*'many'"),
        (["--num-rows"], "Missing value for argument '--num-rows'"),
        (["extra"], "Unrecognized options: extra; see --help"),
    ],
)
def test_bad_options_are_one_line(
    words: list[str],
    message: str,
    color: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", color)
    with pytest.raises(ConfigError, match=message) as error:
        read_options(Options(), words, "")
    text = str(error.value)
    assert text.isascii()
    assert "\n" not in text
    assert "\x1b" not in text
    assert "  " not in text
    assert capfd.readouterr() == ("", "")


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read_options(Options(), ["--help"], "What this is for.")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "What this is for." in text
    assert "How fast." in text
