"""Small SVG drawings that are legible on light and dark pages: shapes, charts, their colours.

A file has its colours in a style of its own, which follows the reader's system; on the site the
drawing is part of the page and has the colours of its theme (hooks.py, `style`).
"""

from html import escape

WIDTH = 480  # units of every drawing: on a phone a letter of 13 has 9 pixels, on a desk 15
LIGHT = {
    "ink": "#1f2328", "soft": "#5b6570", "grid": "#d5dbe1", "paper": "#ffffff",
    "a": "#0f7b8a", "b": "#c2570c", "c": "#6d4fc4", "d": "#5d7a1f", "e": "#8a949e",
    "pale": "#dcedf0",
}  # fmt: skip
DARK = {
    "ink": "#e8ecf1", "soft": "#a5b0bc", "grid": "#3d4654", "paper": "#1e2129",
    "a": "#4fc3d3", "b": "#f29a54", "c": "#ab97f2", "d": "#a9c95f", "e": "#7f8b99",
    "pale": "#23404a",
}  # fmt: skip
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def style(light=".drawing", dark=None):
    """The colours as CSS: of selectors for light and dark, or by the system's preference."""
    lines = [f"{light} {{ {variables(LIGHT)} }}"]
    rule = f"{dark or light} {{ {variables(DARK)} }}"
    lines.append(rule if dark else f"@media (prefers-color-scheme: dark) {{ {rule} }}")
    return "\n".join(lines)


def variables(colours):
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


class Drawing:
    """Shapes in a square of units, put together to a file. Colours are names of LIGHT."""

    def __init__(self, title, height):
        self.title, self.height, self.parts = title, height, []

    def add(self, name, text=None, **attributes):
        given = "".join(
            f' {key.rstrip("_").replace("_", "-")}="{short(value)}"'
            for key, value in attributes.items()
            if value is not None
        )
        inside = "/>" if text is None else f">{escape(text)}</{name}>"
        self.parts.append(f"<{name}{given}{inside}")

    def rect(self, x, y, width, height, fill="none", line=None, r=2, dash=None, opacity=None):
        self.add(
            "rect", x=x, y=y, width=width, height=height, rx=r, fill=colour(fill),
            stroke=line and colour(line), stroke_dasharray=dash, opacity=opacity,
        )  # fmt: skip

    def text(self, x, y, text, size=13, fill="ink", anchor=None, weight=None, mono=False):
        self.add(
            "text", text, x=x, y=y, font_size=None if size == 13 else size,
            fill=None if fill == "ink" else colour(fill), text_anchor=anchor, font_weight=weight,
            font_family="ui-monospace, 'DejaVu Sans Mono', monospace" if mono else None,
        )  # fmt: skip

    def line(self, points, stroke="ink", width=1, dash=None, arrow=False):
        joined = " ".join(f"{short(x)},{short(y)}" for x, y in points)
        self.add(
            "polyline", points=joined, fill="none", stroke=colour(stroke), stroke_width=width,
            stroke_dasharray=dash, marker_end="url(#arrow)" if arrow else None,
        )  # fmt: skip

    def dot(self, x, y, fill):
        self.add("circle", cx=x, cy=y, r=3.5, fill=colour(fill))

    def __str__(self):
        arrow = (
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="var(--soft)"/></marker>'
            "</defs>\n"
        )
        body = "\n".join(self.parts)
        return (
            f'<svg class="drawing" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} '
            f'{short(self.height)}" font-family="{FONT}" font-size="13" fill="var(--ink)">\n'
            f"<title>{escape(self.title)}</title>\n<style>{style()}</style>\n"
            f"{arrow if 'url(#arrow)' in body else ''}{body}\n</svg>\n"
        )


def colour(name):
    return name if name == "none" or name.startswith("var(") else f"var(--{name})"


def short(value):
    """A number with as many digits as a drawing needs."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else escape(str(value))


def nice_step(largest, n=5):
    """A step of 1, 2 or 5 times a power of ten that gives at most n of them."""
    return next(s * 10**e for e in range(-3, 12) for s in (1, 2, 5) if largest <= n * s * 10**e)


def heading(drawing, title, source):
    """Title, and beneath it what the figures are and where they come from; y of what follows."""
    drawing.text(0, 15, title, 15, weight=600)
    for i, line in enumerate(source):
        drawing.text(0, 33 + 15 * i, line, 11, "soft")
    return 33 + 15 * len(source)


def legend(drawing, y, entries):
    """[(name, colour)] side by side."""
    x = 0
    for name, fill in entries:
        drawing.rect(x, y - 9, 11, 11, fill)
        drawing.text(x + 16, y, name, 12)
        x += 30 + 6.7 * len(name)
    return y + 12


def line_chart(title, source, series, x_label, y_label):
    """series: [(name, colour, [(x, y)], is_dotted)], x and y from 0."""
    drawing = Drawing(title, 0)
    top = heading(drawing, title, source) + 8
    for name, fill, _, is_dotted in series:
        drawing.line([(0, top - 4), (22, top - 4)], fill, 2, "2 3" if is_dotted else None)
        drawing.text(28, top, name, 12)
        top += 17
    left, right, top, height = 34, WIDTH - 8, top + 16, 210
    max_x = max(x for _, _, points, _ in series for x, _ in points)
    max_y = max(y for _, _, points, _ in series for _, y in points) * 1.05
    step_x, step_y = nice_step(max_x), nice_step(max_y)

    def at(x, y):
        return left + (right - left) * x / max_x, top + height * (1 - y / max_y)

    drawing.text(0, top - 10, y_label, 11, "soft")
    for i in range(int(max_y // step_y) + 1):
        _, y = at(0, i * step_y)
        drawing.line([(left, y), (right, y)], "grid")
        drawing.text(left - 6, y + 4, f"{i * step_y:,g}", 11, "soft", "end")
    for i in range(int(max_x // step_x) + 1):
        x, _ = at(i * step_x, 0)
        drawing.text(x, top + height + 16, f"{i * step_x:,g}", 11, "soft", "middle")
    drawing.text(right, top + height + 32, x_label, 11, "soft", "end")
    for _, fill, points, is_dotted in series:
        places = [at(x, y) for x, y in points]
        drawing.line(places, fill, 2, "2 4" if is_dotted else None)
        for x, y in [] if is_dotted else places:
            drawing.dot(x, y, fill)
    drawing.height = top + height + 38
    return drawing


def bar_chart(title, source, groups, names, unit):
    """groups: [(label, [(value, note)])], a bar for each of names: [(name, colour)]."""
    drawing = Drawing(title, 0)
    y = legend(drawing, heading(drawing, title, source) + 10, names) + 8
    largest = max(value for _, bars in groups for value, _ in bars)
    room = WIDTH - 128
    for label, bars in groups:
        drawing.text(0, y + 12, label, 13)
        y += 20
        for (value, note), (_, fill) in zip(bars, names, strict=True):
            width = max(2.0, room * value / largest)
            drawing.rect(0, y, width, 15, fill)
            drawing.text(width + 7, y + 12, f"{value:.3g} {unit}{note}", 12)
            y += 18
        y += 9
    drawing.height = y
    return drawing


def stacked_chart(title, source, rows, names, unit):
    """rows: [(label, [value])], the values of each laid end to end, in order of names."""
    drawing = Drawing(title, 0)
    y = heading(drawing, title, source) + 10
    for i in range(0, len(names), 3):
        y = legend(drawing, y, names[i : i + 3]) + 6
    y += 4
    largest = max(sum(values) for _, values in rows)
    for label, values in rows:
        drawing.text(0, y + 12, label, 13)
        drawing.text(WIDTH, y + 12, f"{sum(values):,.0f} {unit}", 12, "soft", "end")
        y, x = y + 20, 0.0
        for value, (_, fill) in zip(values, names, strict=True):
            width = WIDTH * value / largest
            drawing.rect(x, y, max(0.4, width - 1), 20, fill, r=1)
            if width > 44:
                drawing.text(x + width / 2, y + 15, f"{value:,.0f}", 12, "paper", "middle")
            x += width
        y += 32
    drawing.height = y
    return drawing
