"""Proxies that the environment names, by the rules that skopeo goes by.

Spec: golang.org/x/net/http/httpproxy, proxy.go.
"""

import ipaddress
import os
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote, urlsplit

import urllib3

from exporter.errors import UsageError

_PORTS = {"http": 80, "https": 443}
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxies:
    """What `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say.

    Attributes:
        by_scheme: URL of the proxy for `http` and for `https`; empty if there is none.
        exempt: Comma-separated hosts, domains, addresses and networks that need none.
    """

    by_scheme: dict[str, str]
    exempt: str

    @classmethod
    def of_environment(cls) -> Self:
        """Return what the environment of this process says, in capitals or not."""
        http, https, exempt = (
            os.environ.get(name) or os.environ.get(name.lower()) or ""
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
        )
        return cls(by_scheme={"http": http, "https": https}, exempt=exempt)

    def url(self, scheme: str, host: str) -> str:
        """Return the proxy for a scheme and `host[:port]`; empty if it is to be reached directly.

        Loopback is never reached through a proxy.
        """
        found = self.by_scheme[scheme]
        if not found or self._is_exempt(scheme, host):
            return ""
        return found if "://" in found else f"http://{found}"

    def _is_exempt(self, scheme: str, host: str) -> bool:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname or "", parts.port or _PORTS[scheme]
        address = _address(name)
        if name == "localhost" or (address is not None and address.is_loopback):
            return True
        for entry in self.exempt.lower().replace(" ", "").split(","):
            if _matches(entry, name, port) or (address is not None and _holds(entry, address)):
                return True
        return False


def pool_manager(proxy: str, **options: object) -> urllib3.PoolManager:
    """Return connections through a proxy, or direct ones if it is empty.

    Raises:
        UsageError: It cannot be used; the message leaves out its password.
    """
    if not proxy:
        return urllib3.PoolManager(**options)  # type: ignore[arg-type]
    try:
        parts = urlsplit(proxy)
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=user) if parts.username else None
        return urllib3.ProxyManager(address, proxy_headers=headers, **options)  # type: ignore[arg-type]
    except (ValueError, AssertionError):
        raise UsageError(
            "the proxy that the environment names (HTTPS_PROXY, HTTP_PROXY) cannot be used",
            hint="it must be http://host:port; exempt the destination by NO_PROXY to do without",
        ) from None


def _holds(entry: str, address: _Address) -> bool:
    """Return whether an entry of NO_PROXY is an address or network that an address is in."""
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _matches(entry: str, name: str, port: int) -> bool:
    """Return whether an entry of NO_PROXY that is no network is about a host."""
    domain, _, wanted_port = entry.partition(":")
    if wanted_port and wanted_port != str(port):
        return False
    if domain.startswith(("*.", ".")):
        return name.endswith(domain.removeprefix("*"))
    return bool(domain) and (domain in {"*", name} or name.endswith(f".{domain}"))


def _address(name: str) -> _Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
