"""How good files and values are made hostile: damage to bytes, to JSON and YAML, and odd names."""

from __future__ import annotations

import json
import random
from typing import Any

HUGE = 10**5000  # more digits than Python turns into text
WORDS = ("..", "../../x", "/etc/hostname", "a\x00b", "a\nb", "\ud800", "\udcff", "", " ", "con")
ODD_NAMES = (
    *("..", ".", "...", "../../up", "/absolute", "a/b", "a\\b", "C:\\x", "-rf", "~", "$HOME", "%s"),
    *("new\nline", "tab\t", "bell\x07", "\x1b[31mred", "\u202egnp.exe", "e\u0301", "\u00e9"),
    *("x" * 255, "\u732b" * 85, "\U0001f408" * 60, "CON", "nul.txt", "com1", ".hidden", ".claims"),
    *("metadata.jsonl", "manifest.0-of-1.x.jsonl", "expansion.yaml", "classes.json", "Ant", "ant"),
    *("contact_sheet.png", "cat.partial", "trailing.", "trailing ", "a:b", "a*b", "{}", "{0.x}"),
    *("\udcff\udcfe", "caf\udce9", "\u200b", "\ufeff", "0", "-1", "1e5", "null", "True", "#"),
    *("\ufb01", "\u0600", "'", '"', "&amp;", "<b>"),
)  # fmt: skip


def odd_name(draw: random.Random) -> str:
    """Text that makes a bad name of a class or file; may hold surrogates, NUL and separators."""
    name = draw.choice(ODD_NAMES)
    if draw.random() < 0.3:
        name = "".join(
            chr(draw.choice((draw.randrange(128), draw.randrange(0x10FFFF)))) for _ in "12345"
        )
    return name + draw.choice(("", "", "", ".", " ", "1", "\u0301"))


def file_name(draw: random.Random) -> str:
    """An odd name that this system can give a file: one component of at most 255 bytes."""
    raw = (
        odd_name(draw)
        .replace("/", "\u2215")
        .replace("\x00", "\x01")
        .encode("utf-8", "surrogatepass")
    )
    raw = raw[:240].decode("utf-8", "ignore").encode()
    if draw.random() < 0.03:
        raw += bytes([draw.randrange(128, 256)])
    name = raw.decode("utf-8", "surrogateescape")
    return "dots" if name.strip(".") == "" else name


def odd_value(draw: random.Random, depth: int = 0) -> Any:
    """A value of any JSON type, mostly not what is expected."""
    flat = (
        *(
            None,
            True,
            False,
            0,
            1,
            -1,
            10**6,
            10**12,
            -(10**12),
            2**63,
            2**70,
            HUGE,
            0.5,
            1e308,
            5e-324,
        ),
        *(float("nan"), float("inf"), -float("inf"), "x" * 100_000, *WORDS),
    )
    if depth < 3 and draw.random() < 0.25:
        count = draw.randrange(4)
        if draw.random() < 0.5:
            return [odd_value(draw, depth + 1) for _ in range(count)]
        return {odd_name(draw): odd_value(draw, depth + 1) for _ in range(count)}
    return draw.choice(flat)


def changed(draw: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one node replaced, removed or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value, key=str))
        copy = dict(value)
        action = draw.random()
        if action < 0.15:
            del copy[key]
        elif action < 0.25:
            copy[odd_name(draw)] = odd_value(draw)
        else:
            copy[key] = changed(draw, value[key])
        return copy
    if isinstance(value, list) and value and draw.random() < 0.8:
        index = draw.randrange(len(value))
        return [*value[:index], changed(draw, value[index]), *value[index + draw.randrange(2) :]]
    return odd_value(draw)


def as_json(value: Any, draw: random.Random) -> str:
    """JSON text, with NaN and with numbers of any length."""
    if not isinstance(value, (dict, list)):
        return _number(value) if type(value) is int else json.dumps(value)
    if isinstance(value, dict):
        pairs = [f"{json.dumps(key)}: {as_json(item, draw)}" for key, item in value.items()]
        if pairs and draw.random() < 0.05:
            pairs.append(pairs[0])  # a key given twice
        return "{" + ", ".join(pairs) + "}"
    return "[" + ", ".join(as_json(item, draw) for item in value) + "]"


def _number(value: int) -> str:
    return str(value) if abs(value) < 10**4000 else "9" * 5000


def hostile_json(draw: random.Random, value: Any) -> bytes:
    """A JSON file that began as `value`: with odd values, deep, cut, or no JSON at all."""
    action = draw.random()
    if action < 0.08:
        return draw.choice((b"[", b'{"a":', b"[[1],")) * draw.choice((10, 500, 20_000, 200_000))
    if action < 0.12:
        return nested(draw.choice((900, 5000, 100_000))).encode()
    for _ in range(draw.randrange(1, 4)):
        value = changed(draw, value)
    text = as_json(value, draw)
    if action < 0.17:
        return text.encode(draw.choice(("utf-16", "utf-32", "utf-8-sig")), "surrogatepass")
    content = text.encode("utf-8", "surrogatepass")
    return damaged(draw, content) if action < 0.4 else content


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Bytes cut off, flipped, overwritten, doubled, or replaced as a whole."""
    if not content or draw.random() < 0.05:
        return draw.randbytes(draw.choice((0, 1, 10, 1000)))
    for _ in range(draw.choice((1, 1, 1, 1, 1, 2, 5))):
        content = _damaged_once(draw, content)
    return content


def _damaged_once(draw: random.Random, content: bytes) -> bytes:
    # Headers decide most, so a third of the damage is near the start.
    bound = min(len(content), 64) if draw.random() < 0.3 else len(content)
    start = draw.randrange(bound + 1)
    end = min(len(content), start + draw.choice((1, 2, 4, 8, 100)))
    part = content[start:end]
    action = draw.randrange(7)
    if action == 0:
        return content[:start]
    if action == 1 and part:
        return content[:start] + bytes([part[0] ^ 1 << draw.randrange(8)]) + content[start + 1 :]
    if action == 2:
        extreme = draw.choice(
            (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff")
        )
        return content[:start] + extreme + content[start + len(extreme) :]
    if action == 3:
        return content[:start] + content[end:]
    if action == 4:
        return content[:end] + part * draw.choice((1, 3, 100)) + content[end:]
    if action == 5:
        return content[:start] + draw.randbytes(len(part)) + content[end:]
    return content[:start] + bytes(len(part)) + content[end:]


def laughs(levels: int = 40) -> str:
    """YAML in which a few aliases stand for 10^levels values."""
    lines = ['a0: &a0 ["lol"]']
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


def hostile_yaml(draw: random.Random, values: dict[str, Any], mark: str) -> bytes:
    """A YAML file that began as `values`."""
    tags = (
        f"!!python/object/apply:os.mkdir ['{mark}']",
        f"!!python/object/new:os.mkdir ['{mark}']",
        "!!python/name:os.system",
        "!!timestamp x",
        "!!bool x",
        "!!int ''",
        "!!float x",
        "!!binary '!'",
        "!!set {a, b}",
        "!!omap [1]",
        "!custom x",
        "2024-13-45",
        "0x" + "f" * 5000,
        "1:2:3:4",
        ".inf",
        ".nan",
        "1e400",
        "0o17",
        "~",
        "{a: b}",
        "*none",
        "&a [*a]",
        "? [1, 2]\n: 3",
        "\t x",
        "9" * 5000,
        "[" * 2000,
        "{a: " * 500 + "1" + "}" * 500,
        "'" + "x" * 100_000 + "'",
        "yes",
    )
    keys = list(values)
    lines = {key: as_json(value, draw) for key, value in values.items()}
    action = draw.random()
    if action < 0.06:
        key = draw.choice(keys)
        return f"{laughs()}\n{key}: *a39\n".encode()
    if action < 0.1:
        return f"{draw.choice(keys)}:\n{_indented(laughs(9))}\n".encode()
    for _ in range(draw.randrange(1, 3)):
        odd = draw.choice(tags) if draw.random() < 0.7 else as_json(odd_value(draw), draw)
        lines[draw.choice(keys) if draw.random() < 0.8 else as_json(odd_name(draw), draw)] = odd
    text = "".join(f"{key}: {value}\n" for key, value in lines.items())
    content = text.encode(draw.choice(("utf-8", "utf-8", "utf-8", "utf-16")), "surrogatepass")
    return damaged(draw, content) if draw.random() < 0.25 else content


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
