"""What lies between the command line and the system: refused files in words, streams, widths, homes, Ctrl-C."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exmap.cli.system import BY_NUMBER, make_ready, refusal
from exmap.homes import cache_folder, cache_remark, usable_home, use_some_home
from exmap.interrupts import end_at_once, raised
from exmap.plain_text import printable, textual_path
from exmap.settings import ImageSettings
from running import LONGEST, Give, command


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Give:
    return lambda *words: command(monkeypatch, capsys, *words)


# What the system refuses


@pytest.mark.parametrize("number", sorted(BY_NUMBER))
def test_each_refusal_of_a_file_names_it_and_says_what_to_do(number: int) -> None:
    said = refusal(OSError(number, os.strerror(number), "some/file"))
    assert "Errno" not in said
    assert "; " in said
    assert ("some/file" in said) or number in (errno.EAGAIN, errno.ENOMEM, errno.EPIPE, errno.ECONNRESET)
    assert ("disk is full" in said) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert ("permissions" in said) == (number in (errno.EACCES, errno.EPERM))


def test_refusals_of_other_libraries_and_without_a_number_are_said_as_they_are() -> None:
    wrapped = OSError("a.safetensors could not be written: No space left on device (os error 28)")
    assert refusal(wrapped).startswith("a file cannot be written because the disk is full; free some space and rerun")
    assert refusal(OSError("it is a pipe")) == (
        "the system refused a file (it is a pipe); fix the cause and rerun the same command: finished work is kept"
    )
    assert len(refusal(OSError(errno.ENAMETOOLONG, "too long", "x" * 5000))) < 500
    assert "a or b" in refusal(OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"))


def test_paths_that_the_system_refuses_are_refused_in_one_sentence(give: Give, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for out in ("x" * 300, "/".join(["deep"] * 2000), "loop", "file/run"):
        said = give("run", "digits", "--out", tmp_path / out)
        assert said.refused(), said.err[-300:]


# Streams


def program(*words: str, **changes: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **{key: str(value) for key, value in changes.items()}}
    start = [sys.executable, "-m", "exmap"]
    shell = " ".join(words)
    return subprocess.run(
        ["bash", "-c", f'"$@" {shell}', "bash", *start],
        capture_output=True,
        text=True,
        env=env,
        timeout=LONGEST,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "code", "sentences"),
    [
        ("--help | true; exit ${PIPESTATUS[0]}", 141, 0),
        ("run nothing 2>&1 | true; exit $((PIPESTATUS[0] % 139))", 2, 0),
        ("--help >/dev/full", 2, 1),
        ("--version >&-", 0, 0),
        ("run nothing >&- 2>&- <&-", 2, 0),
    ],
)
def test_streams_that_are_closed_or_full_end_it_without_a_traceback(words: str, code: int, sentences: int) -> None:
    done = program(words)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == done.stderr.count("exmap: ") == sentences


def test_any_text_is_printed_whatever_the_encoding() -> None:
    done = program("run $'d\\xc3\\xa4\\xff'", PYTHONIOENCODING="ascii", LC_ALL="C", TERM="dumb", NO_COLOR="1")
    assert done.returncode == 2
    assert done.stderr.startswith("exmap: unknown preset ")
    assert done.stderr.isascii()


@pytest.mark.parametrize("columns", ["0", "", "abc", "-5", "7", "9" * 30])
def test_a_width_that_is_none_is_not_taken(give: Give, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        monkeypatch.setenv(name, columns)
    said = give("data", "list")
    assert said.code == 0
    assert "cmnist" in said.out
    assert "COLUMNS" not in os.environ


def test_closed_streams_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    make_ready()
    print("to nobody \udcff")
    assert sys.stdout is not None
    sys.stdout.close()


def test_what_a_terminal_would_obey_is_written_out() -> None:
    for character in "\x1b\x07\x9b\u202e\u061c\u2028\udcff\n\r":
        assert printable(f"a{character}b").isascii()
    assert printable("Vögel 鳥") == "Vögel 鳥"


def test_a_path_for_libraries_is_text_and_leads_to_the_same_file(tmp_path: Path) -> None:
    for name in ("Vögel", "n\udcff"):
        (tmp_path / name).write_text("mine")
        with textual_path(tmp_path / name) as path:
            assert str(path).encode()
            assert path.read_text() == "mine"


# Homes


@pytest.mark.parametrize("home", ["/", "relative", "/no/such/home", "/dev/null"])
def test_without_a_home_the_temporary_directory_has_one_of_the_users_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    mine = tmp_path / f"exmap-{os.getuid()}"
    assert usable_home() is None
    assert cache_folder() == ImageSettings().cache_folder == mine / ".cache" / "exmap"
    assert str(mine) in cache_remark()
    use_some_home()
    assert os.environ["HOME"] == str(mine)
    assert usable_home() == mine
    assert mine.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == mine / ".cache" / "exmap"
    assert cache_remark()


def test_a_home_of_somebody_else_in_the_temporary_directory_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"exmap-{os.getuid()}").symlink_to("theirs")
    folder = cache_folder()
    assert folder.is_relative_to(tmp_path)
    assert folder.relative_to(tmp_path).parts[0] not in ("theirs", f"exmap-{os.getuid()}")


def test_the_home_and_the_cache_that_are_named_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # is ignored, as its specification says
    assert cache_folder() == tmp_path / ".cache" / "exmap"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named" / "exmap"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder() == tmp_path / ".cache" / "exmap"
    assert cache_remark() == ""
    use_some_home()
    assert os.environ["HOME"] == str(tmp_path)


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("LOGNAME", raising=False)
    assert usable_home() is None
    use_some_home()
    assert os.environ["LOGNAME"] == f"user-{os.getuid()}"


# Ctrl-C

PRESSED = """
import os, signal, sys, time
from exmap.interrupts import end_at_once, raised
end_at_once()
def press(): os.kill(os.getpid(), signal.SIGINT); time.sleep(10)
if sys.argv[1] == "loading":
    try:
        press()
    except BaseException:
        print("raised")
with raised() as pressed:
    try:
        press()
    except KeyboardInterrupt:
        print("raised", pressed(), flush=True)
    if sys.argv[1] == "twice":
        press()
print("on", flush=True)
press()
"""


@pytest.mark.parametrize(("when", "out"), [("loading", ""), ("twice", "raised True\n"), ("once", "raised True\non\n")])
def test_ctrl_c_is_raised_at_work_alone_and_ends_it_at_once_else_and_the_second_time(when: str, out: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRESSED, when],
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout) == (130, out)
    assert done.stderr == "exmap: interrupted; no work was under way, so the same command can simply be given again\n"


def test_a_handler_of_somebody_else_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        undo = end_at_once()
        with raised():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        undo()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        undo = end_at_once()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        undo()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_library_makes_of_an_interruption_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from exmap.cli.common import bars_at_work

    def load() -> None:
        with bars_at_work("all is kept"):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("initialization failed") from None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as left:
            load()
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.value.code == 130
    assert capsys.readouterr().err == "exmap: interrupted; all is kept\n"
