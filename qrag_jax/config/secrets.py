"""Secrets stay out of files and messages: what is written is redacted, and addresses that carry a secret are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence

SHOWN = "***"
"""What stands in the place of a secret."""
_WORD = r"(?:api[-_.]?key|access[-_.]?key|key|token|secret|password|passwd|pwd|sig|signature|credentials?|auth|authorization)"
# A parameter of an address (?api_key=, &token=), a field of JSON ("api_key": "...").
_PARAMETER = re.compile(rf"(?i)([?&;#](?:[\w.-]*[-_.])?{_WORD}=)[^&;#\s,'\"]+")
_FIELD = re.compile(rf"(?i)(['\"](?:[\w.-]*[-_.])?{_WORD}['\"]\s*:\s*)(?:'[^']*'|\"[^\"]*\")")
# user:password@ of an address, with or without a scheme.
_USER = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^/?#\s'\"]*@")
_BARE_USER = re.compile(r"(?<![\w/@.-])(?!(?:flax|openai):)[\w.+-]+:[^\s/@:'\"]+@(?=[\w\[])")
# Keys as well-known services issue them, and the header that carries one.
_KEY = re.compile(r"\b(?:(?:sk|pk|rk|hf|gsk|xai|nvapi|ghp|gho|github_pat|glpat|AIza|AKIA|ya29)[-_.]?)(?=[\w.-]*\d)[\w.-]{16,}")
_BEARER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}")
# An option of a command line whose value is a secret: --token X, --api-key=X.
_OPTION = re.compile(rf"(?i)--?(?:[\w.-]*[-_.])?{_WORD}")


def redact(text: str, *known: str) -> str:
    """``text`` with :data:`SHOWN` in the place of every secret: those of ``known``, and what looks like one.

    These look like one: user:password@, parameters such as ?api_key=, fields such as "token": "...", and keys in the form of well-known
    services.
    """
    for secret in sorted({part for part in known if part}, key=len, reverse=True):
        text = text.replace(secret, SHOWN)
    text = _BEARER.sub(rf"\g<1>{SHOWN}", _USER.sub(rf"\g<1>{SHOWN}@", text))
    text = _FIELD.sub(rf'\g<1>"{SHOWN}"', _PARAMETER.sub(rf"\g<1>{SHOWN}", text))
    return _KEY.sub(SHOWN, _BARE_USER.sub(f"{SHOWN}@", text))


def redact_words(words: Sequence[str]) -> list[str]:
    """A command line without secrets: each word redacted, and the values of options such as --token."""
    out: list[str] = []
    secret = False
    for word in words:
        name, equals, _ = word.partition("=")
        if secret and not word.startswith("-"):
            out.append(SHOWN)
        else:
            out.append(f"{name}={SHOWN}" if equals and _OPTION.fullmatch(name) else redact(word))
        secret = not equals and _OPTION.fullmatch(word) is not None
    return out


def holds_credentials(text: str) -> bool:
    """Whether a text has the form of an address with user:password@ or with a parameter such as ?api_key=."""
    return _USER.search(text) is not None or _PARAMETER.search(text) is not None


def clean_key(value: str, variable: str) -> str:
    """The key in the environment variable ``variable``, without white space around it.

    Raises ValueError, naming the variable and not the value, on characters that no HTTP header may hold.
    """
    key = value.strip()
    if bad := next((character for character in key if not "!" <= character <= "~"), None):
        what = "a character that is not ASCII" if bad > "~" and bad != "\x7f" else "a space" if bad == " " else "a control character"
        raise ValueError(f"{variable}: the key holds {what} (character {key.index(bad) + 1}); set the variable to the key alone")
    return key
