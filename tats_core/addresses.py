"""Addresses of servers: checked where they enter, and every text without the secrets that it may repeat."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from tats_core.errors import SpecError

# User and password of an address, also where an unquoted '/', '?' or '#' in the password hides its end. What
# looks like a port, with its five digits at most, is one: `http://mlflow:5000/team@home` has no user.
_USER = r"(?:[^\s/?#{0}]*@|[^\s/?#@:{0}]*:(?!\d{{1,5}}(?:/|$))[^\s{0}]*@)"
# Quotes and brackets end an address in a sentence. Where a text begins with one, they may be of a password.
_IN_TEXT = re.compile("(?<=://)" + _USER.format("'\"<>"))
_AT_START = re.compile(r"^(\w[\w+.-]*://)(" + _USER.format("") + ")")
# Of an address's options those that are secrets, as in `postgresql://host/db?password=…` or a signed address.
_OPTION = re.compile(
    r"(?<=[?&;])([\w.-]*(?:passw(?:or)?d|pwd|token|secret|signature|sig|api_?key|access_?key)=)"
    r"[^\s&#;'\"<>)]+",
    re.IGNORECASE,
)
_SECRETS = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "PGPASSWORD",
)
_ADDRESSES = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_SHORTEST = 4  # letters of a secret: a shorter one would be replaced in the middle of words


def masked(text: str) -> str:
    """Return `text` without users, passwords and tokens of addresses and the secrets of the environment.

    Everything that is printed, stored or sent passes through it where it may hold an address, or an error of
    a library, which may repeat one.
    """
    text = _AT_START.sub(r"\1", text)
    for secret in _secrets():
        text = text.replace(secret, "***")
    return _OPTION.sub(r"\1***", _IN_TEXT.sub("", text))


def masked_values(value: Any) -> Any:
    """Return plain values (of JSON or YAML) with each text in them as `masked` returns it."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: masked_values(part) for key, part in value.items()}
    return [masked_values(part) for part in value] if isinstance(value, list | tuple) else value


def _secrets() -> Iterator[str]:
    values = [os.environ.get(name, "") for name in _SECRETS]
    for name in _ADDRESSES:
        address = _AT_START.match(os.environ.get(name, ""))
        if address:
            # Errors repeat it as it stands in the address, or decoded. A user without a password is a token.
            user, _, password = address[2].removesuffix("@").partition(":")
            values += [password or user, unquote(password or user)]
    return (value for value in values if len(value) >= _SHORTEST)


def check(uri: str, where: str, example: str = "http://host:5000") -> str:
    """Return the address of a server, if it can be one; `where` opens the message of an error.

    Raises:
        SpecError: it holds spaces or control characters, has no host, or an impossible port.
    """
    problem = ""
    if re.search(r"[\s\x00-\x1f\x7f]", uri):
        problem = "must not hold spaces, line breaks or control characters"
    else:
        try:
            parts = urlsplit(uri)
            missing = parts.scheme in ("http", "https") and not parts.hostname
            problem = "names no host" if missing or parts.port == 0 else ""
        except ValueError:
            problem = "has an impossible port, or an unfinished '['"
    if problem:
        raise SpecError(f"{where} {masked(uri)!r} {problem}; it must look like {example}")
    return uri
