"""Headstart: transfer learning from a folder of images, at the speed of cached activations."""

import importlib.util
import os

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def _keep_loopback_off_proxies() -> None:
    """Where a proxy is set: requests to this machine's own servers never go through it, from here or from any child.

    Libraries read one spelling or the other, some the first that is there: both get all of what either holds.
    """
    if any(os.environ.get(name) for name in PROXIES):
        listed = ",".join(os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")).split(",")
        kept = [host.strip() for host in listed if host.strip()]
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(dict.fromkeys([*kept, *LOOPBACK]))


def _forget_socks_proxies() -> None:
    """Without `socksio`, a SOCKS proxy serves no request, and its mere name ends each client of Prefect's in an error."""
    for name in PROXIES:
        if os.environ.get(name, "").lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
            del os.environ[name]


def _let_threads_sleep() -> None:
    """Have OpenMP's threads sleep after a short while of waiting: those that spin for long take the cores from other work,
    and from each other. Read when torch is imported; what the user has set stays (docs/decisions.md, bench/neighbours.py).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


_keep_loopback_off_proxies()
_forget_socks_proxies()
_let_threads_sleep()
