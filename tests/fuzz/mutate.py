"""Mutations of a case, {file name: bytes}: what a hostile writer of GGUF and JSON would try.

They know the two formats, so that a number which says how to read on is hit more often than one
byte in a thousand; nothing here comes from bitnet, whose reader is what is tested.
"""

import contextlib
import json
import math
import struct

NUMBERS = (
    0, 1, 2, 3, 4, 31, 32, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
    2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
TYPES = (*range(44), 134, 135, 142, 143, 335)  # of GGUF tensors, those of values among them
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 65504.0, 3e38, math.inf, -math.inf, math.nan)
FLOAT_CODES = ("<f", "<e", "<d")
INFINITE = "@1e999@"  # JSON has no infinity, but this number is one once parsed
TEXTS = (
    "", "a", "\0", "../x", "/etc/passwd", "é" * 300, "bitnet", "llama", "gpt2", "F32", "U8",
    "(a+)+$", "{{ x", "{{ 'a' * 999999999 }}", "{{ messages | tojson }}", "{% generation %}",
    "{{ '%999999999s' % messages[0].content.rsplit() }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
)  # fmt: skip
JUNK = (
    *TEXTS, None, True, False, 0, 1, -1, 2, 3, 64, 2**31, 2**53 + 1, 2**63, 2**64, 10**400, 0.5,
    -0.0, INFINITE, "\ud800", [], [[]], {}, {"a": {}}, [0] * 70, [None],
)  # fmt: skip
MOST_BYTES = 1 << 16  # of one file: mutants do not grow without end


def mutate(rng, files, others):
    """(files, [what was done]): one to four changes of files.

    rng: random.Random. others: list of {name: bytes} to take parts from.
    """
    files, steps = dict(files), []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        name, donor = rng.choice(sorted(files)), rng.choice(others)
        if len(files) > 1 and rng.random() < 0.05:
            steps.append(_move(rng, files, name, donor))
            continue
        change = rng.choice(_changes(name, files[name]))
        other = donor.get(name) or donor[rng.choice(sorted(donor))]
        changed, step = change(rng, files[name], other)
        files[name] = changed[:MOST_BYTES]
        steps.append(f"{name}: {step}")
    return files, steps


def _move(rng, files, name, donor):
    """Take a file away, or put it under a name that another case has, or the other way round."""
    kind, new = rng.randrange(3), rng.choice(sorted(donor))
    if kind == 0:
        del files[name]
        return f"{name}: removed"
    files[new] = files[name] if kind == 1 else donor[new]
    return f"{new}: that of {name if kind == 1 else 'another'}"


def _changes(name, raw):
    """The functions that may change this file, each as often as it is listed."""
    anywhere = [_bits, _number, _float, _cut, _insert, _delete, _repeat, _splice, _swap]
    if raw[:4] == b"GGUF":
        return [_gguf_number] * 12 + [_gguf_entry] * 12 + anywhere
    if name.endswith(".safetensors"):
        return [_safetensors_header] * 12 + [_header_length] + anywhere
    if name.endswith(".json"):
        return [_json] * 12 + anywhere
    return anywhere


# bytes --------------------------------------------------------------------------------------------


def _put(raw, at, new):
    return raw[:at] + new + raw[at + len(new) :]


def _at(rng, raw):
    """A place, more often near the front, where headers are."""
    return int(len(raw) * rng.random() ** rng.choice((1, 1, 3)))


def _bits(rng, raw, _):
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8)) if raw else 0):
        at = _at(rng, raw)
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed), "bits"


def _number(rng, raw, _):
    at, value, width = _at(rng, raw), rng.choice(NUMBERS), rng.choice((1, 2, 4, 8))
    new = (value % 256**width).to_bytes(width, "little")
    return _put(raw, at, new), f"{width} bytes at {at} = {value}"


def _float(rng, raw, _):
    at, value, code = _at(rng, raw), rng.choice(FLOATS), rng.choice(FLOAT_CODES)
    if code == "<e" and abs(value) > 65504 and math.isfinite(value):
        value = 65504.0
    return _put(raw, at, struct.pack(code, value)), f"{code[1]} at {at} = {value}"


def _cut(rng, raw, _):
    n = _at(rng, raw)
    return raw[:n], f"cut to {n}"


def _insert(rng, raw, _):
    at, new = _at(rng, raw), rng.randbytes(rng.choice((1, 4, 8, 32)))
    return raw[:at] + new + raw[at:], f"{len(new)} bytes put in at {at}"


def _delete(rng, raw, _):
    at, n = _at(rng, raw), rng.choice((1, 4, 8, 32, 256))
    return raw[:at] + raw[at + n :], f"{n} bytes taken out at {at}"


def _repeat(rng, raw, _):
    at, n, times = _at(rng, raw), rng.choice((1, 8, 32, 256)), rng.choice((1, 2, 50))
    return raw[:at] + raw[at : at + n] * times + raw[at:], f"{n} bytes at {at} {times} times more"


def _swap(rng, raw, _):
    n, one, two = rng.choice((1, 4, 8, 32)), _at(rng, raw), _at(rng, raw)
    swapped = _put(_put(raw, one, raw[two : two + n]), two, raw[one : one + n])
    return swapped, f"{n} bytes at {one} and {two} swapped"


def _splice(rng, raw, other):
    at, of = _at(rng, raw), _at(rng, other)
    return raw[:at] + other[of:], f"from {at} on that of another file from {of}"


# GGUF ---------------------------------------------------------------------------------------------

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of value types
STRING, ARRAY = 8, 9


class _Walk:
    """A GGUF header, followed as far as it goes.

    places: [(what, at, bytes)] of its numbers. entries: [("key" or "tensor", name, begin, end)].
    """

    def __init__(self, raw):
        self.raw, self.at, self.places, self.entries = raw, 4, [], []
        with contextlib.suppress(ValueError, RecursionError):
            self._follow()

    def _follow(self):
        self.number("version", 4)
        n_tensors, n_keys = self.number("n_tensors", 8), self.number("n_kv", 8)
        for _ in range(min(n_keys, 1000)):
            begin, key = self.at, self.string("key")
            self.value(key, self.number(f"{key} type", 4))
            self.entries.append(("key", key, begin, self.at))
        for _ in range(min(n_tensors, 1000)):
            begin, name = self.at, self.string("tensor")
            for _ in range(min(self.number(f"{name} n_dims", 4), 8)):
                self.number(f"{name} ne", 8)
            self.number(f"{name} type", 4)
            self.number(f"{name} offset", 8)
            self.entries.append(("tensor", name, begin, self.at))

    def number(self, what, width):
        if self.at + width > len(self.raw):
            raise ValueError("the file ends")
        value = int.from_bytes(self.raw[self.at : self.at + width], "little")
        self.places.append((what, self.at, width))
        self.at += width
        return value

    def string(self, what):
        n = self.number(f"{what} length", 8)
        text = self.raw[self.at : self.at + n].decode("utf-8", "replace")
        self.at += n
        return text

    def value(self, what, type_id):
        if type_id == STRING:
            self.string(what)
        elif type_id == ARRAY:
            element, n = self.number(f"{what} element type", 4), self.number(f"{what} count", 8)
            for _ in range(min(n, 1000)):
                self.value(what, element)
        else:
            self.number(what, SIZES.get(type_id, 1 << 62))


def gguf_places(raw):
    """[(what, at, bytes)] of every number in the header, as far as it can be followed."""
    return _Walk(raw).places


def _gguf_number(rng, raw, _):
    places = gguf_places(raw)
    if not places:
        return raw, "nothing"
    what, at, width = rng.choice(places)
    value = int.from_bytes(raw[at : at + width], "little")
    near = (value - 1, value + 1, 2 * value, value // 2, -value, value ^ 1 << rng.randrange(64))
    choices = TYPES if what.endswith("type") else NUMBERS
    value = rng.choice(near if rng.random() < 0.3 else choices)
    if width in (4, 8) and rng.random() < 0.1:
        bits = struct.pack("<f" if width == 4 else "<d", rng.choice(FLOATS))
        value = int.from_bytes(bits, "little")
    new = (value % 256**width).to_bytes(width, "little")
    return _put(raw, at, new), f"{what} = {int.from_bytes(new, 'little')}"


def _gguf_entry(rng, raw, other):
    """A key or tensor removed or given twice, put in from another file, or a key's value replaced.

    The counts are made right, and the data begins where it should.
    """
    walk, donor = _Walk(raw), _Walk(other)
    if not walk.entries:
        return raw, "nothing"
    kind, name, begin, end = rng.choice(walk.entries)
    entry, action = raw[begin:end], rng.randrange(4)
    if action == 0:
        new, step = b"", "removed"
    elif action == 1 and donor.entries:
        kind, name, start, stop = rng.choice(
            [e for e in donor.entries if e[0] == kind] or donor.entries
        )
        new, step = entry + other[start:stop], "put in"
    elif action == 2 and kind == "key":
        new, step = entry[: 8 + len(name.encode())] + _value(rng), "another value"
    else:
        new, step = entry * 2, "twice"
    n = (len(new) > len(entry)) - (len(new) == 0)
    at = 8 if kind == "tensor" else 16
    count = (int.from_bytes(raw[at : at + 8], "little") + n) % 2**64
    data = raw[-(-walk.at // 32) * 32 :]
    head = _put(raw[:begin] + new + raw[end : walk.at], at, count.to_bytes(8, "little"))
    return head + bytes(-len(head) % 32) + data, f"{name[:60]} {step}"


def _value(rng):
    """The type and bytes of some value."""
    type_id = rng.choice((*SIZES, STRING, ARRAY))
    if type_id == STRING:
        text = rng.choice((b"\xff", *(text.encode() for text in TEXTS)))
        return struct.pack("<IQ", STRING, len(text)) + text
    if type_id == ARRAY:
        n, element = rng.choice((0, 1, 2, 8, 70)), rng.choice((*SIZES, STRING))
        one = struct.pack("<Q", 1) + b"a" if element == STRING else bytes([1]) * SIZES[element]
        return struct.pack("<IIQ", ARRAY, element, n) + one * n
    number = rng.choice(NUMBERS) % 256 ** SIZES[type_id]
    return struct.pack("<I", type_id) + number.to_bytes(SIZES[type_id], "little")


# JSON ---------------------------------------------------------------------------------------------


def _nodes(value, path=()):
    """(path, value) of everything inside a JSON value, itself first."""
    yield path, value
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _nodes(inner, (*path, key))


def _json(rng, raw, other):
    """One node replaced, removed, renamed or copied; or its text given twice."""
    try:
        value = json.loads(raw)
        nodes = list(_nodes(value))[1:]
        path, old = rng.choice(nodes)
    except (ValueError, IndexError, RecursionError):
        return _splice(rng, raw, other)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    key, kind = path[-1], rng.randrange(10)
    step = f"{'.'.join(map(str, path))[:80]} "
    if kind == 0:
        del parent[key]
        step += "removed"
    elif kind == 1 and isinstance(parent, dict):
        parent[str(rng.choice(JUNK))] = parent.pop(key)
        step += "renamed"
    elif kind == 2:
        from_path, new = rng.choice(nodes)
        parent[key] = json.loads(json.dumps(new))
        step += f"= that of {'.'.join(map(str, from_path))[:80]}"
    elif kind == 3 and isinstance(old, int | float) and not isinstance(old, bool):
        parent[key] = rng.choice((old + 1, old - 1, -old, old * 2, old // 2, str(old), [old]))
        step += f"= {parent[key]}"
    elif kind in (5, 6) and isinstance(parent, dict):  # what another file of this name has
        with contextlib.suppress(ValueError, IndexError, RecursionError):
            from_path, new = rng.choice(list(_nodes(json.loads(other)))[1:])
            parent[str(from_path[-1])] = new if kind == 5 else rng.choice(JUNK)
            step = f"{'.'.join(map(str, from_path))[:80]} put in"
    else:
        parent[key] = rng.choice(JUNK)
        step += f"= {str(parent[key])[:40]!a}"
    text = json.dumps(value).replace(f'"{INFINITE}"', "1e999")
    if kind == 7 and text.startswith("{") and len(text) > 2:  # an entry twice
        text, step = text[:-1] + ", " + text[1:], "every key twice"
    return text.encode("utf-8", "surrogatepass"), step


def _safetensors_header(rng, raw, other):
    n = int.from_bytes(raw[:8], "little")
    if n > len(raw):
        return _splice(rng, raw, other)
    header, step = _json(rng, raw[8 : 8 + n], other[8 : 8 + int.from_bytes(other[:8], "little")])
    return struct.pack("<Q", len(header)) + header + raw[8 + n :], f"header: {step}"


def _header_length(rng, raw, _):
    value = rng.choice((*NUMBERS, len(raw), len(raw) - 8, len(raw) - 7)) % 2**64
    return _put(raw, 0, struct.pack("<Q", value)), f"header length = {value}"
