"""Text of documents as it is shown: characters that control a terminal, or that reverse the order of what follows, become escapes."""

from __future__ import annotations

# Line ends and tabs stay. C0 and C1 controls, delete; overrides and isolates of direction; half surrogates, which no terminal can print.
_CODES = [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in (*_CODES, *range(0xD800, 0xE000))}


def printable(text: str) -> str:
    """``text`` with escapes such as \\x1b for control characters other than line ends and tabs; any other text as it is."""
    return text.translate(_ESCAPES) if not text.isprintable() else text
