import os
import pty
import sys
import time
from types import SimpleNamespace

from counting import bursts, write
from twopass_kd.bin import recognize
from twopass_kd.ondevice import audio


def screen(text: str, columns: int):
    """What a terminal shows: the lines after carriage returns and wrapping."""
    lines, column = [""], 0
    for c in text:
        if c == "\r":
            column = 0
        elif c == "\n":
            lines.append("")
        else:
            if column == columns:
                lines.append("")
                column = 0
            lines[-1] = lines[-1][:column].ljust(column) + c + lines[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def on_terminal(monkeypatch, columns, *args):
    """What a terminal of so many columns receives; at the pace of speech, which nobody waits for here."""
    waits = []
    master, slave = pty.openpty()
    with open(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(audio, "time", SimpleNamespace(monotonic=time.monotonic, sleep=waits.append))
        code = recognize.main(["model", "--stream", *args])
    text = b""
    while True:
        try:
            text += os.read(master, 65536)
        except OSError:  # all was read and the other end is closed
            break
    os.close(master)
    assert max(waits) > 1
    return code, text.decode()


def test_recognize_on_a_terminal_rewrites_one_line(counting, talk, monkeypatch):
    code, text = on_terminal(monkeypatch, 40, talk)
    assert code == 0 and "\rONE" in text and "\rONE TWO" in text
    assert [line.split("] ")[1] for line in screen(text, 40) if line] == ["ONE TWO", "ONE TWO THREE"]


def test_recognize_on_a_terminal_cuts_the_line_to_its_width(counting, talk, monkeypatch):
    code, text = on_terminal(monkeypatch, 10, talk)
    assert code == 0
    partials = [part.rstrip() for part in text.replace("\n", "\r").split("\r") if part.strip() and "[" not in part]
    assert partials == ["ONE", "ONE TWO", "ONE", "ONE TWO", "…WO THREE"]


def test_recognize_on_a_terminal_names_several_files(counting, talk, tmp_path, monkeypatch):
    one = write(tmp_path / "one.wav", bursts(0.5, 0.5), subtype="FLOAT")
    lines = [line for line in screen(on_terminal(monkeypatch, 200, talk, one)[1], 200) if line]
    assert [line.split("] ")[-1] for line in lines] == [f"{talk}:", "ONE TWO", "ONE TWO THREE", f"{one}:", "ONE"]
