"""Addresses in a configuration hold no secrets, for a configuration is stored, tracked and shown as it is.

Import-light: the command line reads this. No message here repeats the address or name that it refuses.
"""

import ipaddress
import re
from urllib.parse import unquote_plus, urlsplit

from core.errors import ConfigError

_BEYOND_A_PLACE = re.compile(r"[@?#]")
# [dialect://]user:password@host as SQLAlchemy reads it: a password may hold slashes
_PASSWORD_BEFORE_HOST = re.compile(r"(?:[\w+]+://)?+[^:/]*:[^@]*@")
_PASSWORD_AS_OPTION = re.compile(r"(password|passwd|pwd|secret|token)\s*=", re.IGNORECASE)
_NAME_OF_A_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# letters and digits in a row, as in keys and not in words
_KEY = re.compile(r"[A-Za-z0-9]{24}|(?=[A-Za-z]*[0-9])[A-Za-z0-9]{16}")


def plain_address(address: str, *, name: str, instead: str) -> str:
    """`address`, if it only says where: no user, password, query or fragment. Raises ConfigError that names `name`."""
    if _BEYOND_A_PLACE.search(address):
        raise ConfigError(
            f"{name} may hold no user, password, query or fragment (an @, ? or #), because it is stored as it is: "
            f"{instead}"
        )
    return address


def database_address(address: str, *, name: str) -> str:
    """A SQLAlchemy URL without a password. Raises ConfigError that names `name`."""
    if _PASSWORD_BEFORE_HOST.match(address) or _PASSWORD_AS_OPTION.search(unquote_plus(address)):
        raise ConfigError(
            f"{name} may hold no password, because it is stored as it is: leave it out "
            "(postgresql://user@host/name) and set PGPASSWORD in the environment, or write it into ~/.pgpass"
        )
    return address


def variable_name(text: str, *, name: str) -> str:
    """`text`, if it can be the name of an environment variable, or is empty. Raises ConfigError for a pasted key."""
    if text and (not _NAME_OF_A_VARIABLE.fullmatch(text) or _KEY.search(text)):
        raise ConfigError(
            f"{name} takes the name of an environment variable, e.g. OPENAI_API_KEY, never the key itself: "
            "put the key into that variable"
        )
    return text


def endpoint_address(base_url: str) -> tuple[str, str]:
    """The endpoint's address in messages, and its host. Raises ConfigError, which does not repeat what may be a key."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, f":{parts.port}" if parts.port else ""
    except ValueError:  # brackets without an IPv6 address, a port that is no number
        parts, host, port = urlsplit(""), None, ""
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("expert.base_url is no address of an endpoint: expected http(s)://host/v1")
    return f"{parts.scheme}://{host}{port}{parts.path}", host


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
