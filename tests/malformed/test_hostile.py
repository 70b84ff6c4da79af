"""Texts that would steer a terminal, forge a line of the log or break a table stay texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from malformed.test_tables import SOUND, prepared, row, write
from prerank import artifacts as a
from prerank import cli, progress
from prerank.errors import DataError
from prerank.evaluation.table import print_table
from prerank.show import describe_folder, print_description, print_rows
from prerank.store import Manifest, Store

HOSTILE = {
    "colour": "\x1b[31mred",
    "title of the window": "\x1b]0;mine\x07",
    "a clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "a link": "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\",
    "8-bit control": "\x9b31mred",
    "clear the screen": "\x1bc\x1b[2J",
    "back over what was said": "a\b\b\rb",
    "the other way round": "abc\u202efed",
    "another line": "x\nserve: all is well",
    "other line ends": "x\u2028y\x85z\x0b\x0c",
    "null": "a\0b",
    "markup": "[bold red]x[/][/] [link=http://evil]y[/link]",
}
CONTROL = {chr(c) for c in (*range(32), *range(127, 160))} - {"\n"} | {"\u202e", "\u2028"}


def harmless(text: str) -> bool:
    """Say whether no character of ``text`` steers a terminal."""
    return not CONTROL & set(text)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_log_line_stays_one_line(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    progress.silence(False)
    progress.log(f"image: the first is {HOSTILE[kind]}")
    said = capsys.readouterr().err
    assert harmless(said)
    assert all(line.startswith("  ") for line in said.splitlines()[1:])


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_error_message_has_a_line_a_question(kind: str) -> None:
    text = HOSTILE[kind]
    said = str(DataError(text, where=text, must=text, got=text, hint=text))
    assert harmless(said) and len(said.splitlines()) == 5


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_id_in_a_complaint_about_a_log(tmp_path: Path, kind: str) -> None:
    named = HOSTILE[kind].replace("\n", " ").replace("\r", " ").replace(",", " ")
    write(tmp_path, row("exposures.csv", 5, "item", named))
    with pytest.raises(DataError) as caught:
        prepared(tmp_path)
    assert "item, row 5" in caught.value.where and harmless(str(caught.value))


def artifact(folder: Path, text: str) -> Path:
    """Write an artifact whose names and values are ``text``."""
    manifest = Manifest("encode", "0123456789abcdef", {text: text, "of": [text]}, 0, {text: "m"})
    with Store(folder).publish("embeddings", manifest) as out:
        (out / "quality.json").write_text(json.dumps({text: text, "more": {text: [text]}}))
    return folder / "embeddings"


@pytest.mark.parametrize("kind", HOSTILE)
def test_show_of_a_hostile_artifact(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = artifact(tmp_path, HOSTILE[kind])
    print_description(describe_folder(made))
    print_description(describe_folder(tmp_path))
    print_rows([{"what": HOSTILE[kind]}])
    said = capsys.readouterr().out
    assert harmless(said) and "quality.json" in said
    if kind == "markup":
        assert "[bold red]x[/][/]" in said


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_report_with_hostile_names(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = HOSTILE[kind]
    print_table(a.Report((a.Record(text, text, "all", "auc", 0.5, 0.4, 0.6, 3, 1),)))
    said = capsys.readouterr().out
    assert harmless(said) and ".500" in said


def test_the_command_line_escapes_what_it_did_not_foresee(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with -v: a traceback ends with the text of the error."""

    def fail(*_: object) -> None:
        raise ValueError("item \x1b[31m\nerror: all is well")

    monkeypatch.setattr("prerank.show.describe_folder", fail)
    for flags in ([], ["-v"]):
        monkeypatch.setattr("sys.argv", ["prerank", *flags, "show", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr().err
        assert ended.value.code == 1 and harmless(said)
        assert ("Traceback" in said) is bool(flags)
        assert "error: unexpected ValueError: item \\x1b[31m\\nerror: all is well\n" in said


def test_the_sound_tables_hold_no_control_characters() -> None:
    """Else the tests above would look at nothing of their own."""
    assert all(harmless(text) for text in SOUND.values())
    assert not any(harmless(text) for kind, text in HOSTILE.items() if kind not in PLAIN)


PLAIN = ("markup", "another line")
