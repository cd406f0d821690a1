"""Flags from files: words as in a shell, comments, overrides, and one line for every mistake."""

import pytest

from engine.runtime.errors import OneLineParser


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parse words in the folder of the files."""
    monkeypatch.chdir(tmp_path)
    parser = OneLineParser("script")
    parser.add_argument("--name")
    parser.add_argument("--sizes", nargs="+", type=int)
    parser.add_argument("--fast", action="store_true")
    return lambda *words: vars(parser.parse_args(words))


def test_a_file_stands_for_its_words(parse, tmp_path):
    (tmp_path / "a.args").write_text('# a comment\n\n--name "two words"  # the name\n  --sizes 1 2\n3\n')
    (tmp_path / "b.args").write_text("--fast\n")
    assert parse("@a.args", "@b.args") == {"name": "two words", "sizes": [1, 2, 3], "fast": True}


def test_later_flags_override_those_of_a_file(parse, tmp_path):
    (tmp_path / "a.args").write_text("--name a --sizes 1 2\n")
    assert parse("--sizes", "5", "@a.args", "--name", "b") == {"name": "b", "sizes": [1, 2], "fast": False}


def test_the_command_line_itself_is_read_the_same_way(parse, tmp_path, monkeypatch):
    (tmp_path / "a.args").write_text("--name a\n")
    monkeypatch.setattr("sys.argv", ["script", "@a.args"])
    parser = OneLineParser("script")
    parser.add_argument("--name")
    assert parser.parse_args().name == "a"


MISTAKES = {
    "not there": (None, "@a.args: cannot be read (No such file or directory)"),
    "not text": (b"--name \xff", "@a.args: is not UTF-8"),
    "a quotation mark": (b"--fast\n--name 'a\n", "@a.args: line 2: No closing quotation"),
    "another file": (b"@b.args\n", "@a.args: line 1: found @b.args, expected flags, not another file"),
    "an unknown flag": (b"--slow\n", "unrecognized arguments: --slow"),
}


@pytest.mark.parametrize(("content", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(parse, tmp_path, capsys, content, expected):
    if content is not None:
        (tmp_path / "a.args").write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        parse("@a.args")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("script: error: ")
    assert expected in line


def test_a_folder_and_an_empty_name_are_one_line(parse, capsys):
    for word in ("@.", "@"):
        with pytest.raises(SystemExit):
            parse(word)
        assert len(capsys.readouterr().err.splitlines()) == 1
