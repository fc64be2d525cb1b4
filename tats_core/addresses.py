"""Addresses of servers as they may be shown."""

from __future__ import annotations

from urllib.parse import urlsplit


def without_password(uri: str) -> str:
    """Return `uri` without the user and password that it may hold."""
    parts = urlsplit(uri)
    return uri if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
