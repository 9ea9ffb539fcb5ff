"""Headstart: transfer learning from a folder of images, at the speed of cached activations."""

import importlib.util
import os

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def _keep_loopback_off_proxies() -> None:
    """Keep requests to this machine's own servers off any proxy, in this process and in its children.

    Some libraries read `NO_PROXY`, some `no_proxy`: both get the hosts of either, and loopback.
    """
    if any(os.environ.get(name) for name in PROXIES):
        listed = ",".join(os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")).split(",")
        kept = [host.strip() for host in listed if host.strip()]
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(dict.fromkeys([*kept, *LOOPBACK]))


def _forget_socks_proxies() -> None:
    """Ignore SOCKS proxies if `socksio` is missing: no request could use them, and Prefect's clients fail at their name."""
    for name in PROXIES:
        if os.environ.get(name, "").lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
            del os.environ[name]


def _let_threads_sleep() -> None:
    """Let OpenMP's waiting threads sleep soon: threads that spin take the cores from other work and from each other.

    torch reads this at import. A user's own setting stays (docs/decisions.md, bench/neighbours.py).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


_keep_loopback_off_proxies()
_forget_socks_proxies()
_let_threads_sleep()
