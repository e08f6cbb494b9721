"""Remove secrets from text that is shown: URIs, messages, tracebacks, headers."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Iterator
from itertools import chain
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

HIDDEN = "***"
MIN_SECRET_LENGTH = 4  # characters; a shorter secret is part of too many words
SECRET_NAME = re.compile(r"(?i)pass|pwd|token|secret|key|cred|auth|sig|sas|cookie|session|jwt")
SECRET_VARIABLE = re.compile(
    r"(?i)(?:password|passwd|token|secret|credential|api_?key|access_?key)(?!.*(?:file|path)$)"
)
NOT_SECRETS = ("true", "false", "none", "token")  # values of switches, as TOKENIZERS_PARALLELISM
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
    """Remove user name, password and secret options from a URI, or from a message that quotes one."""
    text = USER.sub(f"//{HIDDEN}@", text)
    text = ENCODED_USER.sub(f"%2F%2F{HIDDEN}%40", text)
    text = OPTION.sub(_redact_option, text)
    text = ENCODED_OPTION.sub(_redact_option, text)
    text = HEADER.sub(rf"\1{HIDDEN}", text)
    text = SCHEME.sub(rf"\1 {HIDDEN}", text)
    return SETTING.sub(rf"\1{HIDDEN}", text)


def redact(text: str) -> str:
    """Remove what `redact_uri` does, and every secret of the environment variables."""
    # The longest first: one secret may contain another.
    for secret in sorted(set(_environment_secrets()), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return redact_uri(text)


def _redact_option(match: re.Match[str]) -> str:
    mark, name, value = match.groups()
    equals = "=" if mark in "?&;" else "%3D"
    is_secret = SECRET_NAME.search(unquote(unquote(name)))
    return f"{mark}{name}{equals}{HIDDEN if is_secret else value}"


def _environment_secrets() -> Iterator[str]:
    """Yield each secret of the environment in every encoding in which a message may quote it."""
    values = [value for name, value in os.environ.items() if SECRET_VARIABLE.search(name)]
    for text in chain(values, _uri_secrets(os.environ.get("MLFLOW_TRACKING_URI", ""))):
        plain = unquote(text)
        pair = b64encode(plain.encode()).decode() if ":" in plain else ""
        forms = (text, plain, quote(plain), quote(plain, safe=""), quote_plus(plain), pair)
        yield from (f for f in forms if len(f) >= MIN_SECRET_LENGTH and f.lower() not in NOT_SECRETS)


def _uri_secrets(uri: str) -> Iterator[str]:
    """Yield the user, the password, the pair of them and the secret options of a URI."""
    if uri.startswith(("sqlite:", "file:")):
        return
    try:
        split = urlsplit(uri)
    except ValueError:
        return
    credentials = split.netloc.rpartition("@")[0]
    user, _, password = credentials.partition(":")
    yield from (user, password, f"{unquote(user)}:{unquote(password)}" if credentials else "")
    for option, value in parse_qsl(split.query):
        if SECRET_NAME.search(option):
            yield value
