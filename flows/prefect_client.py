"""Talk to Prefect's server: start one, check that it answers, and close the runs of processes that died."""

from __future__ import annotations

import contextlib
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from headstart.core.errors import Unavailable
from headstart.core.liveness import dead, forget
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)
from prefect.states import Crashed

SECONDS_TO_ANSWER = 4.0


def close_dead_flow_runs(root: Path) -> None:
    """Mark this project's flow runs as crashed if their process died. Without a worker, nothing else does so."""
    names = dead(root, "prefect")
    if not names:
        return
    with get_client(sync_client=True) as client:
        for name in names:
            with contextlib.suppress(ObjectNotFound):
                if client.read_flow_run(uuid.UUID(name)).state_type == StateType.RUNNING:
                    client.set_flow_run_state(uuid.UUID(name), Crashed(message="its process died"), force=True)
            forget(root, "prefect", name)


def start_server() -> None:
    """Start the server that Prefect would start for this process, and make it ignore the Ctrl-C that a terminal sends to both.

    An interrupted run reports this to the server. If Ctrl-C ended the server too, the run would try for a minute.
    """
    from prefect.server.api.server import SubprocessASGIServer  # a second to import

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
    try:
        SubprocessASGIServer().start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_server() -> None:
    """Refuse to start if PREFECT_API_URL names a server and none answers there.

    Raises:
        Unavailable: none answers; the message names the address.
    """
    address = PREFECT_API_URL.value()
    if address is None:
        return
    patience = {PREFECT_API_REQUEST_TIMEOUT: SECONDS_TO_ANSWER, PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(patience), get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise _no_server(address, error)


@contextlib.contextmanager
def server_there() -> Iterator[None]:
    """Translate Prefect's errors about a server that went away, or did not start, into ours.

    Raises:
        Unavailable: the server went away or did not start.
    """
    try:
        yield
    except httpx.TransportError as error:
        raise _no_server(str(PREFECT_API_URL.value() or "of this run"), error) from None
    except RuntimeError as error:
        if "ephemeral" not in str(error):
            raise
        raise Unavailable(
            f"Prefect's own server did not start: {error}", fix="run again: a busy machine may be too slow to start it"
        ) from None


def _no_server(address: str, error: Exception) -> Unavailable:
    parts = urlsplit(address)  # shown without a password that may be in it
    shown = (
        f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}" if parts.hostname else address
    )
    if isinstance(error, httpx.HTTPStatusError):
        problem = f"answers {error.response.status_code}: this is not Prefect's API, or it asks for a password"
    else:
        problem = f"does not answer: {(str(error) or type(error).__name__).splitlines()[0]}"
    return Unavailable(
        f"Prefect's server {shown} (PREFECT_API_URL) {problem}",
        fix="start it (make schedule), or run without it: unset PREFECT_API_URL, and if a profile of Prefect's sets it,"
        " `prefect config unset PREFECT_API_URL`",
    )
