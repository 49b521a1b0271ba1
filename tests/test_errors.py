"""Errors: one line for people who catch them, two for those who read them in a terminal."""

import errno

import pytest
import typer

from onnxq.cli.commands import fail, guarded
from onnxq.errors import ModelError, one_line


def test_text_joins_what_is_wrong_and_what_to_do() -> None:
    error = ModelError("m.onnx is cut off", hint="copy it again")
    assert (error.what, error.hint) == ("m.onnx is cut off", "copy it again")
    assert str(error) == "m.onnx is cut off; copy it again"
    assert str(ModelError("m.onnx is cut off")) == "m.onnx is cut off"


def test_a_command_prints_the_hint_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise ModelError("m.onnx is\ncut off", hint="copy\nit again")

    with pytest.raises(typer.Exit):
        guarded(command)()
    assert capsys.readouterr().err == "error: m.onnx is cut off\nhint: copy it again\n"


@pytest.mark.parametrize(
    ("error", "line", "hint"),
    [
        (MemoryError(), "error: the memory does not suffice", "hint: give fewer"),
        (ImportError("libx.so: failed to map segment"), "error: a package cannot be loaded: libx.so", "hint: install"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/t/a"),
            "error: No space left on device (/t/a)",
            "hint: mak",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "error: Too many open files", "hint: raise the limit"),
    ],
)
def test_what_the_system_refuses_is_no_bug(
    error: Exception, line: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        guarded(command)()
    assert caught.value.exit_code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(line)
    assert second.startswith(hint)


def test_other_errors_of_the_system_are_bugs(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/t/a")

    with pytest.raises(typer.Exit) as caught:
        guarded(command)()
    assert caught.value.exit_code == 1
    assert "this is a bug" in capsys.readouterr().err


def test_without_a_hint_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        fail("m.onnx is cut off", 2)
    assert capsys.readouterr().err == "error: m.onnx is cut off\n"


def test_one_line_names_an_exception_without_a_text_and_leaves_an_empty_string_empty() -> None:
    assert one_line(ValueError()) == "ValueError"
    assert one_line("") == ""
    assert one_line("a\n b") == "a b"
    assert one_line("x" * 400) == "x" * 297 + "..."
