"""Words that end up as names, numbers or texts where nobody expected them."""

from __future__ import annotations

import random

NAMES = (
    "ünïcödé 日本",
    "a b\tc",
    'it\'s "quoted"',
    "x" * 180,
    "<script>alert(1)</script>",
    "-rf",
    "%s{0}$HOME",
    "..",
    "\u202egnp",
    "~nobody",
)
NUMBERS = ("-1", "0", "1e9", "99999999999999999999", "nan", "inf", "-0.5", "1e-300", "1_0", "٣", "0x10", "9" * 5000)
WORDS = (
    "",
    " ",
    "None",
    "[]",
    "{}",
    "'",
    '"',
    "\\",
    "true",
    "False",
    "__import__('os')",
    "é",
    "a=b",
    "\x00",
    "1; 2",
    "lambda: 0",
    "[" * 3000,
)


def spoil(text: str, dice: random.Random, times: int) -> str:
    """`text` with some characters replaced by words that were not expected there."""
    for _ in range(times):
        at = dice.randrange(len(text) + 1)
        word = dice.choice([*WORDS, *NUMBERS, *',\n"\r;}[ '])
        text = text[:at] + word + text[at + dice.randrange(8) :]
    return text
