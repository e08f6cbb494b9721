"""Secrets, taken out of every text that is shown: of an address, a message, a traceback, a header."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Iterator
from itertools import chain
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

HIDDEN = "***"
LONG_ENOUGH = 4  # characters; a shorter secret is a part of too many words
SECRET_NAME = re.compile(r"(?i)pass|pwd|token|secret|key|cred|auth|sig|sas|cookie|session|jwt")
SECRET_VARIABLE = re.compile(
    r"(?i)(?:password|passwd|token|secret|credential|api_?key|access_?key)(?!.*(?:file|path)$)"
)
NO_SECRETS = ("true", "false", "none", "token")  # values of switches, as TOKENIZERS_PARALLELISM
USER = re.compile(r"(?<!sqlite:)(?<!file:)(?<!/)//\S*@")
ENCODED_USER = re.compile(r"(?i)(?<!sqlite%3A)(?<!file%3A)(?<!%2F)%2F%2F[^\s&]*%40")
OPTION = re.compile(r"([?&;])([^=&;?#\s'\"]{1,100})=([^&\s]*)")
ENCODED_OPTION = re.compile(
    r"(?i)(%3F|%26|%3B)((?:(?!%26|%3F|%3D)[^=&;?#\s'\"]){1,100})%3D((?:(?!%26)[^&\s])*)"
)
HEADER = re.compile(
    r"(?i)(['\"]?\b(?:[\w-]*authorization|(?:set-)?cookie|x-[\w-]*(?:key|token|secret))\b['\"]?\s*[:=]\s*)"
    r"(?:'[^'\n]*'|\"[^\"\n]*\"|[^\n,}]+)"
)
SCHEME = re.compile(r"\b(Bearer|Basic|Digest)\s+(?=\S*[\d=._+/])[\w=.+/~-]{6,}")
SETTING = re.compile(r"(?i)\b([\w-]*(?:password|passwd|pwd|token|secret)[\w-]*=)[^\s&'\",;)]+")


def redact_uri(text: str) -> str:
    """A URI, or a message that quotes one, without user name, password and secrets among its options."""
    text = USER.sub(f"//{HIDDEN}@", text)
    text = ENCODED_USER.sub(f"%2F%2F{HIDDEN}%40", text)
    text = OPTION.sub(_option, text)
    text = ENCODED_OPTION.sub(_option, text)
    text = HEADER.sub(rf"\1{HIDDEN}", text)
    text = SCHEME.sub(rf"\1 {HIDDEN}", text)
    return SETTING.sub(rf"\1{HIDDEN}", text)


def redact(text: str) -> str:
    """As `shown`; besides, wherever they stand, the secrets that this process has from its environment."""
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return redact_uri(text)


def _option(match: re.Match[str]) -> str:
    mark, name, value = match.groups()
    equals = "=" if mark in "?&;" else "%3D"
    secret = SECRET_NAME.search(unquote(unquote(name)))
    return f"{mark}{name}{equals}{HIDDEN if secret else value}"


def _secrets() -> Iterator[str]:
    """What may not be shown, in each form that a message may quote it in."""
    values = [value for name, value in os.environ.items() if SECRET_VARIABLE.search(name)]
    for text in chain(values, _of_address(os.environ.get("MLFLOW_TRACKING_URI", ""))):
        plain = unquote(text)
        pair = b64encode(plain.encode()).decode() if ":" in plain else ""
        forms = (text, plain, quote(plain), quote(plain, safe=""), quote_plus(plain), pair)
        yield from (form for form in forms if len(form) >= LONG_ENOUGH and form.lower() not in NO_SECRETS)


def _of_address(uri: str) -> Iterator[str]:
    """The password of an address, the pair of user and password, and its secret options."""
    if uri.startswith(("sqlite:", "file:")):
        return
    try:
        parts = urlsplit(uri)
    except ValueError:
        return
    user = parts.netloc.rpartition("@")[0]
    name, _, password = user.partition(":")
    yield from (name, password, f"{unquote(name)}:{unquote(password)}" if user else "")
    for option, value in parse_qsl(parts.query):
        if SECRET_NAME.search(option):
            yield value
