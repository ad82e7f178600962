"""The drawings of the pages that show no measurement: how bytes lie and what kernels do."""

from svg import WIDTH, Drawing, heading

FIELDS = "abcd"  # a colour for each 32 columns


def logo():
    """-1, 0, +1 as three bars."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><g fill="#ffffff">'
        '<rect x="2" y="13" width="5.4" height="8" rx="1.2"/>'
        '<rect x="9.3" y="10.6" width="5.4" height="2.8" rx="1.2"/>'
        '<rect x="16.6" y="3" width="5.4" height="8" rx="1.2"/></g></svg>\n'
    )


def packed_block():
    """128 columns of a row in 32 bytes."""
    d = Drawing("An I2_S block: 128 weights in 32 bytes", 0)
    y = heading(d, d.title, ["one row, columns 0 to 127; a weight is a code of two bits"]) + 8
    room = WIDTH / 4
    for f in range(4):
        d.rect(f * room, y, room - 3, 26, FIELDS[f])
        d.text(f * room + room / 2, y + 17, f"{32 * f} to {32 * f + 31}", 12, "paper", "middle")
    y += 26
    for f in range(4):
        d.line([(f * room + room / 2, y + 2), (176 + 32 * f, y + 34)], "soft", arrow=True)
    y += 38
    d.text(0, y + 21, "byte j", 13)
    d.text(60, y + 21, "(j = 0 to 31)", 11, "soft")
    for f in range(4):
        x = 160 + 32 * f
        d.rect(x, y, 31, 32, FIELDS[f])
        d.text(x + 15.5, y + 20, ("j", "j+32", "j+64", "j+96")[f], 11, "paper", "middle")
        d.text(x + 15.5, y + 46, ("7 6", "5 4", "3 2", "1 0")[f], 11, "soft", "middle")
    d.text(160 + 32 * 4 + 10, y + 46, "bits", 11, "soft")
    y += 66
    for i, (code, weight) in enumerate(
        [("00", "-1"), ("01", "0"), ("10", "+1"), ("11", "an error")]
    ):
        x = i * room
        d.rect(x, y, 34, 22, "none", "soft")
        d.text(x + 17, y + 15, code, 12, anchor="middle", mono=True)
        d.text(x + 42, y + 15, weight, 13)
    d.height = y + 30
    return d


def group_block():
    """PQ2_0 and Q2_0 of 64."""
    d = Drawing("Scales of groups: a scale in front of each group", 0)
    y = heading(d, d.title, ["one row; s is a float16, codes of four neighbours share a byte"]) + 8
    for name, group, n_bytes in ("PQ2_0", 128, 34), ("Q2_0 of 64", 64, 18):
        d.text(0, y + 12, f"{name}: {n_bytes} bytes for {group} columns", 13)
        y += 20
        n = 256 // group
        room = WIDTH / n
        for g in range(n):
            x = g * room
            d.rect(x, y, 26, 26, "b")
            d.text(x + 13, y + 17, f"s{g}", 11, "paper", "middle")
            d.rect(x + 28, y, room - 32, 26, "a")
            label = f"{group * g} to {group * g + group - 1}"
            d.text(x + 28 + (room - 32) / 2, y + 17, label, 11, "paper", "middle")
        y += 40
    d.text(
        0, y + 12, "a byte of codes, columns 4k to 4k+3, the first in the lowest bits", 12, "soft"
    )
    y += 20
    for i in range(4):
        d.rect(32 * i, y, 31, 24, FIELDS[i])
        d.text(32 * i + 15.5, y + 16, f"+{3 - i}", 11, "paper", "middle")
    d.height = y + 32
    return d


def dot_product():
    """A step of the kernel for AVX-512 VNNI."""
    d = Drawing("A step of a row's product, AVX-512 VNNI", 0)
    y = (
        heading(d, d.title, ["256 weights and 256 activations in four instructions of products"])
        + 8
    )
    d.rect(0, y, WIDTH - 1, 30, "pale", "a")
    d.text(
        WIDTH / 2,
        y + 20,
        "64 bytes of codes: two blocks of the row, from the map",
        12,
        anchor="middle",
    )
    y += 30
    room = WIDTH / 4
    for f in range(4):
        x = f * room
        d.line([(x + room / 2, y + 1), (x + room / 2, y + 20)], "soft", arrow=True)
        d.rect(x + 2, y + 22, room - 6, 40, FIELDS[f])
        d.text(
            x + room / 2,
            y + 38,
            "and " + ("0xC0", "0x30", "0x0C", "0x03")[f],
            12,
            "paper",
            "middle",
        )
        d.text(
            x + room / 2,
            y + 54,
            ("codes x 64", "codes x 16", "codes x 4", "codes")[f],
            11,
            "paper",
            "middle",
        )
        d.line([(x + room / 2, y + 63), (x + room / 2, y + 82)], "soft", arrow=True)
        d.rect(x + 2, y + 84, room - 6, 24, "none", FIELDS[f])
        d.text(x + room / 2, y + 100, "vpdpbusd", 12, anchor="middle", mono=True)
        d.text(x + room / 2, y + 126, f"x[{32 * f}..{32 * f + 31}]", 11, "soft", "middle")
        d.line([(x + room / 2, y + 134), (WIDTH / 2, y + 160)], "grid")
    y += 160
    d.rect(90, y, 300, 26, "pale", "a")
    d.text(WIDTH / 2, y + 17, "four registers of 16 sums, int32, exact", 12, anchor="middle")
    y += 26
    for text in (
        "divide by 64, 16, 4, 1; add up: sum of code * x",
        "minus the sum of x, once a token: code - 1 is the weight",
        "times scale of the weights, times scale of the token: float32",
    ):
        d.line([(WIDTH / 2, y + 1), (WIDTH / 2, y + 14)], "soft", arrow=True)
        d.text(WIDTH / 2, y + 30, text, 12, anchor="middle")
        y += 34
    d.height = y + 6
    return d


def lookup_table():
    """Products by tables, AVX2."""
    d = Drawing("Prompts by tables of sums, AVX2", 0)
    y = heading(d, d.title, ["16 tokens side by side in a register, sums of 16 bits"]) + 10
    d.text(0, y + 10, "four columns of x", 12)
    d.text(218, y + 10, "their 81 sums, made once", 12)
    y += 18
    entries = ("- x0 - x1 - x2 - x3", "- x0 - x1 - x2", "...", "+ x0 + x1 + x2 + x3")
    for i, text in enumerate(entries):
        d.rect(0, y + 18 * i, 160, 16, FIELDS[i])
        d.text(80, y + 12 + 18 * i, f"x{i} of tokens 0 to 15", 11, "paper", "middle")
        d.rect(218, y + 18 * i, 180, 16, "pale")
        d.text(308, y + 12 + 18 * i, text, 11, anchor="middle")
    d.line([(166, y + 35), (210, y + 35)], "soft", arrow=True)
    y += 92
    d.text(0, y, "a byte of row r", 12)
    d.rect(0, y + 8, 160, 22, "none", "soft")
    d.text(80, y + 23, "00 01 10 00", 12, anchor="middle", mono=True)
    d.line([(166, y + 19), (210, y + 19)], "soft", arrow=True)
    d.text(218, y + 16, "names one entry:", 12)
    d.text(218, y + 32, "it is added to the sums of row r", 12)
    d.height = y + 40
    return d


def screen():
    """The head's screen: bounds of each row."""
    d = Drawing("The head's screen: bounds tell which rows can win", 0)
    y = heading(d, d.title, ["estimate of each row from its int8 copy, between its bounds"]) + 12
    rows = [(0.34, 0.05), (0.83, 0.05), (0.45, 0.04), (0.79, 0.05), (0.22, 0.05), (0.6, 0.04)]
    best = max(value - radius for value, radius in rows)
    for i, (value, radius) in enumerate(rows):
        survives = value + radius >= best
        fill = "a" if survives else "e"
        x0, x1 = (80 + 380 * v for v in (value - radius, value + radius))
        d.text(0, y + 5, f"row {i}", 12)
        d.line([(x0, y), (x1, y)], fill, 3)
        d.dot((x0 + x1) / 2, y, fill)
        d.text(x1 + 6, y + 4, "computed" if survives else "", 11, "soft")
        y += 24
    x = 80 + 380 * best
    d.line([(x, y - 24 * len(rows) - 10), (x, y - 8)], "b", 1.5, "4 3")
    d.text(x, y + 8, "greatest lower bound", 11, "b", "middle")
    d.height = y + 18
    return d


DRAWN = {
    "logo": logo,
    "packed-block": packed_block,
    "group-block": group_block,
    "dot-product": dot_product,
    "lookup-table": lookup_table,
    "screen": screen,
}
