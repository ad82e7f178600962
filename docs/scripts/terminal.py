"""A shell in a terminal of its own: keys go in, what a person would see comes out as a moving SVG.

Needs pyte, which is the terminal: it draws what programs print, and answers what they ask it.
"""

import fcntl
import itertools
import os
import pty
import select
import struct
import termios
import time
from dataclasses import dataclass
from html import escape

import pyte

CELL_WIDTH, LINE_HEIGHT, FONT_SIZE = 8.4, 19, 14  # px
MARGIN, TITLE_HEIGHT = 18, 34  # px
FRAME_SECONDS = 0.08  # what comes within it is one picture
IDLE_SECONDS = 1.0  # a longer wait for a program is shown as so long
LAST_SECONDS = 5.0  # of the last picture, before it begins again
COLORS = {
    "default": "#d8dee9", "black": "#4c566a", "red": "#e06c75", "green": "#98c379",
    "brown": "#e5c07b", "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2",
    "white": "#d8dee9", "brightblack": "#8691a3",
}  # fmt: skip
BACKGROUND, BAR, CURSOR = "#15191f", "#20262e", "#8691a3"


@dataclass(frozen=True)
class Frame:
    """A screen from a moment on. seconds: since the first one. rows: what _row gives, one a line.
    cursor: (column, row), None where a program hides it."""

    seconds: float
    rows: tuple
    cursor: tuple | None


class _Screen(pyte.Screen):
    """One that answers where a program asks, as for the cursor's place."""

    answer = staticmethod(lambda data: None)

    def write_process_input(self, data):
        self.answer(data.encode())


class Terminal:
    """A context manager: bash in a terminal of this many columns and rows.

    environment: all of its variables. frames: what was seen so far.
    """

    def __init__(self, columns, rows, environment):
        self.columns, self.n_rows = columns, rows
        self._screen = _Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._clock, self._line_ended = 0.0, True  # seconds; whether the last Enter was taken
        self.frames = []
        self._pid, self._end = pty.fork()
        if self._pid == 0:  # the child
            shell = ["bash", "--noprofile", "--norc"]
            os.execvpe(shell[0], shell, environment | {"TERM": "xterm-256color"})
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, size)
        self._screen.answer = lambda data: os.write(self._end, data)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        os.close(self._end)
        os.waitpid(self._pid, 0)

    def keys(self, text, seconds=0.055):
        """Type this, a key every so many seconds."""
        for key in text:
            os.write(self._end, key.encode())
            self.pause(seconds)

    def enter(self):
        """Press Enter."""
        self.pause(0.1)  # the echo of what was typed
        self._line_ended = False
        os.write(self._end, b"\r")

    def pause(self, seconds):
        """See what comes for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read(left)
        self._clock += seconds

    def wait_for(self, prompt, seconds=60):
        """See what comes until a new line, the cursor's, is this. TimeoutError after so long."""
        begin, screen = time.monotonic(), self._screen
        while not self._line_ended or (
            screen.display[screen.cursor.y][: screen.cursor.x] != prompt
        ):
            waited = time.monotonic() - begin
            if waited > seconds:
                raise TimeoutError("\n".join([f"no {prompt!r} comes:", *screen.display]))
            self._read(0.2, min(waited, IDLE_SECONDS))
        self._clock += min(time.monotonic() - begin, IDLE_SECONDS)

    def _read(self, seconds, waited=0.0):
        if select.select([self._end], [], [], seconds)[0]:
            data = os.read(self._end, 65536)
            self._line_ended |= b"\n" in data
            self._stream.feed(data)
            self._see(self._clock + waited)

    def _see(self, seconds):
        buffer, screen = self._screen.buffer, self._screen
        rows = tuple(_row(buffer[y], self.columns) for y in range(self.n_rows))
        cursor = None if screen.cursor.hidden else (screen.cursor.x, screen.cursor.y)
        if self.frames and seconds - self.frames[-1].seconds < FRAME_SECONDS:
            seconds = self.frames.pop().seconds
        self.frames.append(Frame(seconds, rows, cursor))


def _row(cells, n_columns):
    """((column, text, style), ...): what of a line is not blank, a run of one style each."""
    runs = []
    for style, columns in itertools.groupby(range(n_columns), lambda x: _style(cells[x])):
        columns = list(columns)
        text = "".join(cells[x].data for x in columns).rstrip()
        first = len(text) - len(text.lstrip())
        if text.strip():
            runs.append((columns[0] + first, text.lstrip(), style))
    return tuple(runs)


def _style(cell):
    return cell.fg, cell.bold, cell.italics


# SVG ----------------------------------------------------------------------------------------------


def svg(frames, columns, title):
    """The text of an SVG file that shows the frames one after the other, for ever.

    All frames lie side by side, and the window moves over them. Where nothing moves (a printer, a
    reader who wants no motion) the last one is seen. Rows at the end that are always blank are left
    out.
    """
    befores = [None, *frames[:-1]]
    frames = [f for before, f in zip(befores, frames, strict=True) if not _same(before, f)]
    n_rows = 1 + max(y for frame in frames for y, row in enumerate(frame.rows) if row)
    width = columns * CELL_WIDTH + 2 * MARGIN
    height = TITLE_HEIGHT + n_rows * LINE_HEIGHT + MARGIN
    names, strip = {}, []
    for i, frame in enumerate(frames):
        strip.append(f'<g transform="translate({i * width:g})">')
        for y, row in enumerate(frame.rows):
            if row:
                name = names.setdefault(row, f"r{len(names)}")
                strip.append(f'<use href="#{name}" y="{y * LINE_HEIGHT}"/>')
        if frame.cursor is not None:
            x, y = frame.cursor
            strip.append(f'<use href="#c" x="{x * CELL_WIDTH:g}" y="{y * LINE_HEIGHT}"/>')
        strip.append("</g>")
    rows = (f'<g id="{name}">{_runs(row)}</g>' for row, name in names.items())
    last = f"translateX({-(len(frames) - 1) * width:g}px)"
    dots = "".join(
        f'<circle cx="{20 + 20 * i}" cy="17" r="6" fill="{color}"/>'
        for i, color in enumerate(("#e06c75", "#e5c07b", "#98c379"))
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" \
viewBox="0 0 {width:g} {height:g}">
<title>{escape(title)}</title>
<style>
text {{ font: {FONT_SIZE}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; \
fill: {COLORS["default"]}; white-space: pre }}
{_keyframes(frames, width)}
#strip {{ transform: {last}; animation: play {_duration(frames):.2f}s step-end infinite }}
@media (prefers-reduced-motion: reduce) {{ #strip {{ animation: none }} }}
</style>
<defs>
<rect id="c" width="{CELL_WIDTH}" height="17" y="-14" fill="{CURSOR}"/>
{chr(10).join(rows)}
</defs>
<rect width="100%" height="100%" rx="10" fill="{BACKGROUND}"/>
<path d="M0 {TITLE_HEIGHT}V10a10 10 0 0 1 10-10H{width - 10:g}a10 10 0 0 1 10 10V{TITLE_HEIGHT}z" \
fill="{BAR}"/>
{dots}
<text x="50%" y="22" text-anchor="middle" style="fill: {CURSOR}">{escape(title)}</text>
<svg x="{MARGIN}" y="{TITLE_HEIGHT + MARGIN + 6}" width="{width - MARGIN:g}" \
height="{height - TITLE_HEIGHT:g}" style="overflow: visible" clip-path="inset(-20px 0 0 0)">
<g id="strip">
{chr(10).join(strip)}
</g>
</svg>
</svg>
"""


def _same(before, frame):
    return before is not None and (before.rows, before.cursor) == (frame.rows, frame.cursor)


def _duration(frames):
    return frames[-1].seconds - frames[0].seconds + LAST_SECONDS


def _keyframes(frames, width):
    begin, duration = frames[0].seconds, _duration(frames)
    steps = (
        f"{100 * (f.seconds - begin) / duration:.2f}%{{transform:translateX({-i * width:g}px)}}"
        for i, f in enumerate(frames)
    )
    return f"@keyframes play {{{''.join(steps)}}}"


def _runs(row):
    texts = []
    for column, text, (color, bold, italic) in row:
        style = f"fill: {COLORS.get(color) or '#' + color}" if color != "default" else ""
        style += "; font-weight: bold" * bold + "; font-style: italic" * italic
        attribute = f' style="{style.lstrip("; ")}"' if style else ""
        texts.append(
            f'<text x="{column * CELL_WIDTH:g}" textLength="{len(text) * CELL_WIDTH:g}"{attribute}>'
            f"{escape(text)}</text>"
        )
    return "".join(texts)
