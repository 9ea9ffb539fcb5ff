"""Measure latency and throughput of this project's champion over HTTP: `python -m bench.serving`."""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flows.servers import answers, free_port
from headstart.core.params import load_params

ONES, LOADS = 300, ((1, 1), (8, 1), (8, 16), (2, 64))  # number of single requests in a row; (clients, images per request)


def ask(address: str, images: list[str]) -> float:
    """Return the seconds of one request."""
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"content-type": "application/json"})
    start = time.monotonic()
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert len(json.load(answer)["predictions"]) == len(images)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    source = Path(load_params(Path("params.yaml")).data.source)
    files = [base64.b64encode(path.read_bytes()).decode() for path in sorted(source.rglob("*.*"))[:512] if path.is_file()]
    port = free_port(5400)
    server = subprocess.Popen([sys.executable, "-m", "flows.serve", "--port", str(port)])
    address = f"http://127.0.0.1:{port}"
    try:
        while not answers(port):
            assert server.poll() is None
            time.sleep(0.1)
        images = itertools.cycle(files)
        ask(address, [next(images)])
        times = sorted(ask(address, [next(images)]) for _ in range(ONES))
        print(
            f"one image, one client: median {1e3 * times[ONES // 2]:.1f} ms, 95 % below {1e3 * times[int(0.95 * ONES)]:.1f} ms"
        )
        for clients, size in LOADS:
            rates = []
            for _ in range(repeats):
                requests = [[next(images) for _ in range(size)] for _ in range(max(clients * 4, 512 // size))]
                start = time.monotonic()
                with ThreadPoolExecutor(clients) as pool:
                    list(pool.map(lambda request: ask(address, request), requests))
                rates.append(len(requests) * size / (time.monotonic() - start))
            spread = f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f}) images/s"
            print(f"{clients} clients, {size} images per request: {spread}", flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
