"""Names, texts and values that have broken a program before."""

from __future__ import annotations

import random
import string
from typing import Any

__all__ = ["NASTY_NAMES", "NASTY_TEXTS", "NASTY_VALUES", "nasty_text"]


# Names as they come from other systems, and from people with bad intentions; none is longer than a file system allows.
NASTY_NAMES = (
    "a b", " lead", "trail ", "-rf", "--help", "ü", "u\u0308", "猫", "\u202egpj.exe", "a\nb", "a\rb", "a\tb",
    "a\x1b[31mred", "a\x07", "\udcff\udcfe", "<script>alert(1)</script>", "a&b", "'", '"', "`id`", "$(id)",
    "{{7*7}}", "{% x %}", "%s%n", "a:b", "a;b", "a|b", "a*b", "a?b", "[a]", "[red]a[/red]", "~", "null", "true",
    "0", "00", "1e3", "nan", "-1", "a" * 200, "\u200b", "\ufeff", "\x9b31m", "\\", "a\\b", "CON", "...", "#", "!",
    "=", "a=b", "a,b", "\u0130", "ß", "\U0001f600",
)  # fmt: skip


# Scalars and trees that have broken a reader of YAML, JSON or CSV before.
NASTY_TEXTS = (
    "", " ", "~", "null", "true", "False", "yes", "off", "0", "-1", "1", "2", "3.5", "-0.0", "1e400", "-1e400",
    ".inf", "-.inf", ".nan", "NaN", "Infinity", "1e-320", "9" * 30, "9" * 5000, "1" + "_0" * 50, "0x" + "f" * 40,
    "0o17", "017", "1_000", "12:30:45", "2026-13-45", "2026-02-30 25:61:61", "2026-11-30", "!!int x", "!!float y",
    "!!python/object/apply:os.system [id]", "!!binary =", "!!timestamp x", "!!set {a, a}", "!!omap [a]",
    "!!pairs [a]", "!!bool maybe", "!x", "[" * 1500, "{" * 1500, "[" * 1500 + "]" * 1500,
    "{a: " * 300 + "1" + "}" * 300, "[[[[1]]]]", "[]", "{}", "[1, a, null]", "{a: 1, a: 2}", "{? [a] : b}",
    "{? {a: 1} : b}", "{1: 2}", "{null: 1}", "&a [*a]", "&a {b: *a}", "*a", "- - -", "a: b: c", "'", '"',
    "\"\\ud800\"", "\"\\x00\"", "\"\\x1b[2J\"", "|", ">", "|9", "%YAML 3.0", "---\n---\n", "--- a\n--- b\n", "...",
    "@x", "`x", "\t", "a\tb: c", "\x00", "\x85", "\ufeff", "\ufffe", "\udcff", "<<: 1", "{<<: {a: 1}, a: 2}",
    "{<<: [1]}", "=", "a" * 70000, "[0, 0]", "[1, 0]", "[.nan, 1]", "[1e400]", "[-1]", "0.1", "1.0", "1e308",
    "10000000000", "4294967296", "9223372036854775808", "-9223372036854775809", "../../etc/passwd", "/dev/zero",
    "/dev/null", "/proc/self/mem", "~root/x", "os:system", "builtins:eval", "exmap:nothing", "nothing.at:all",
    "x.py:f", ":", "a:", ":a", "a:b:c", "exmap.errors:ExMapError", "resnet18", "tiny", "cuda", "mps", "cpu",
    "auto",
)  # fmt: skip


NASTY_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10**6, 10**30, -(10**18), 0.5, -0.0, 1e308, 1e-320, "", "x", "\x1b[31m", "<b>",
    "é" * 50, [], [None], [[]], {}, {"a": 1}, {"": {}}, [1, 2, 3], "nan", "2026-13-45", "\udcff", "0", "[0]",
    "/etc/passwd", float("nan"), float("inf"),
)  # fmt: skip


def nasty_text(rng: random.Random) -> str:
    """Return a text from the list, a mixture of two, or one of random characters."""
    kind = rng.random()
    if kind < 0.7:
        return rng.choice(NASTY_TEXTS)
    if kind < 0.85:
        return rng.choice(("[{}, {}]", "{{a: {}, b: {}}}", "{} {}", "{}\n{}", "{}: {}")).format(
            rng.choice(NASTY_TEXTS)[:2000], rng.choice(NASTY_TEXTS)[:2000]
        )
    letters = string.printable + "äßЖ猫\u0000\u0085\u2028\ufeff&*!|>%@`"
    return "".join(rng.choice(letters) for _ in range(rng.randint(1, 40)))
