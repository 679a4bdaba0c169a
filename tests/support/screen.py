"""A terminal for tests: runs a program in a pseudo-terminal and keeps what would be on the screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import unicodedata
from pathlib import Path

ROWS, COLUMNS = 60, 120
TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n])")


class Screen:
    """The characters on a screen that does not scroll, as far as progress bars need one."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = [[]]
        self.row = self.column = 0
        self.pictures: list[str] = []

    def feed(self, text: str) -> None:
        """Act on what a program wrote; every change of the line is a picture."""
        for match in TOKEN.finditer(text):
            number, command, move, character = match.groups()
            if command is not None:
                self._command(number, command)
            elif move == "\r":
                self.pictures.append(self.text)
                self.column = 0
            elif move == "\n":
                self.row += 1
            elif unicodedata.category(character)[0] != "C":
                self._put(character)
        self.pictures.append(self.text)

    def _command(self, number: str, command: str) -> None:
        count = int(number) if number.isdigit() else 1
        if command == "A":
            self.row = max(0, self.row - count)
        elif command == "B":
            self.row += count
        elif command == "K":
            line = self._line()
            del line[0 if number == "2" else self.column :]
        else:
            assert command in "mhl", command

    def _line(self) -> list[str]:
        while len(self.lines) <= self.row:
            self.lines.append([])
        return self.lines[self.row]

    def _put(self, character: str) -> None:
        line = self._line()
        line += [" "] * (self.column + 1 - len(line))
        line[self.column] = character
        self.column += 1

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join("".join(line).rstrip() for line in self.lines)


def shown_in_a_terminal(command: list[str], folder: Path) -> Screen:
    """Run a program in a pseudo-terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # the program has ended
                break
            if not part:
                break
            written += part
        assert process.wait(timeout=60) == 0, written.decode()
    os.close(ours)
    screen = Screen()
    screen.feed(written.decode())
    return screen
