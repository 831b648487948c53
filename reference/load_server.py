"""What the server does under load and with clients that misbehave, on the emulated device with tiny weights.

    python -m reference.load_server [--requests 200] [--clients 16] [--edits 500]

Prints the table of tt_flux_kontext/serving/README.md. Ends with an error where an answer isn't the one it should be.
"""

import argparse
import io
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
from PIL import Image

from reference.make_checkpoint import make_checkpoint

SIDE = 32  # pixels of results
FIELDS = {"num_inference_steps": 2, "max_sequence_length": 16}
SEEDS = 4  # of right requests: each picture is made many times, and has to be the same
UPLOAD_SECONDS = 5
LEAVES_AFTER = 0.5  # seconds


class Server:
    """A process that serves the weights."""

    def __init__(self, weights: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = {"weights": weights, "device": "emulated", "port": self.port, "max-area": SIDE**2}
        options |= {"queue": 8, "together": 4, "upload-seconds": UPLOAD_SECONDS}
        command = [sys.executable, "-m", "tt_flux_kontext.cli", "serve"]
        command += [f"--{name}={value}" for name, value in options.items()]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def images(self, retries: int = 1000, timeout: float = 600.0):
        """OpenAI's client; it comes again, by default, whenever the queue is full."""
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key="none", max_retries=retries, timeout=timeout).images

    def is_ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/health").status == 200
        except OSError:
            return False

    @property
    def megabytes(self) -> int:
        """Of memory that the process takes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) // 1024


@contextmanager
def running() -> Iterator[Server]:
    """Yields when it is ready."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(make_checkpoint(Path(folder) / "tiny", size="tiny"))
        try:
            while not server.is_ready():
                if server.process.poll() is not None:
                    sys.exit("The server ended before it was ready.")
                time.sleep(0.2)
            yield server
        finally:
            server.process.kill()


def picture(mode: str = "RGB", side: int = SIDE) -> bytes:
    """A PNG."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert(mode).save(file, "PNG")
    return file.getvalue()


PICTURE, BOMB = picture(), picture("1", 10000)


# What clients do: (server, seed) -> a status, 0 for none, and a picture in base64 where there is one.


def edit(server: Server, seed: int):
    answer = server.images().edit(image=("a.png", PICTURE), prompt="a", extra_body=FIELDS | {"seed": seed})
    return 200, answer.data[0].b64_json


def stream(server: Server, seed: int):
    body = FIELDS | {"seed": seed}
    *_, last = server.images().edit(image=("a.png", PICTURE), prompt="a", stream=True, extra_body=body)
    return 200, last.b64_json


def torn(server: Server, seed: int):
    return _status(lambda: server.images().edit(image=("a.png", PICTURE[:60]), prompt="a"))


def bomb(server: Server, seed: int):
    return _status(lambda: server.images().edit(image=("a.png", BOMB), prompt="a"))


def wrong(server: Server, seed: int):
    return _status(lambda: server.images().generate(prompt="a", quality="high"))


def leave(server: Server, seed: int):
    images, body = server.images(0, LEAVES_AFTER), FIELDS | {"num_inference_steps": 100}
    return _status(lambda: images.edit(image=("a.png", PICTURE), prompt="a", extra_body=body))


def slow(server: Server, seed: int):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nhost: here\r\ncontent-length: 1000\r\n\r\n")
        connection.settimeout(0.2)
        while True:
            try:
                return int(connection.recv(2**16).split()[1]), None
            except TimeoutError:
                connection.sendall(b" ")


def _status(ask: Callable):
    try:
        ask()
    except openai.APIStatusError as error:
        return error.status_code, None
    except openai.APIConnectionError:
        return 0, None
    return 200, None


# Of 20 requests: what the client does, how often, what it is, and the statuses that are right. A client is sent away
# with 429 before its request is read when the queue is full; all but two come again then.
KINDS = (
    (edit, 12, "edits", (200,)),
    (stream, 2, "edits as a stream", (200,)),
    (torn, 1, "a picture that ends too early", (400,)),
    (bomb, 1, "a picture of 100 million pixels in 12 KB", (413,)),
    (wrong, 1, "`quality=high`", (400,)),
    (leave, 2, f"a client that leaves after {LEAVES_AFTER:g} s", (0, 429)),
    (slow, 1, f"5 bytes a second ({UPLOAD_SECONDS} s are allowed)", (408, 429)),
)


def load(server: Server, requests: int, clients: int) -> list[str]:
    """Rows of a table. Raises `AssertionError` for a wrong answer."""
    kinds = [kind for kind in KINDS for _ in range(kind[1])] * (requests // 20)
    random.Random(0).shuffle(kinds)

    def ask(number: int) -> tuple[float, int, str | None]:
        start = time.perf_counter()
        status, result = kinds[number][0](server, number % SEEDS)
        return time.perf_counter() - start, status, result

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(len(kinds))))
    total = time.perf_counter() - start
    of_kind, pictures = defaultdict(list), defaultdict(set)
    for number, (kind, (seconds, status, result)) in enumerate(zip(kinds, answers, strict=True)):
        assert status in kind[3], f"{kind[2]}: {status}"
        of_kind[kind].append((seconds, status))
        if result:
            pictures[number % SEEDS].add(result)
    assert all(len(different) == 1 for different in pictures.values()), "one seed gave different pictures"
    rows = [
        f"{len(kinds)} requests of {clients} clients in {total:.0f} s",
        "| requests | | answers | median | slowest |",
    ]
    rows.append("|---|---|---|---|---|")
    for kind in KINDS:
        seconds = [each for each, _ in of_kind[kind]]
        statuses = [status for _, status in of_kind[kind]]
        counts = ", ".join(f"{statuses.count(s)} x {s or 'none'}" for s in sorted(set(statuses)))
        times = f"{statistics.median(seconds):.1f} s | {max(seconds):.1f} s"
        rows.append(f"| {len(seconds)} | {kind[2]} | {counts} | {times} |")
    return rows


def endure(server: Server, edits: int) -> Iterator[str]:
    """Memory of the process, every 100 edits."""
    yield f"{server.megabytes} MB before {edits} edits, one after the other"
    start = time.perf_counter()
    for number in range(1, edits + 1):
        edit(server, number)
        if number % 100 == 0 or number == edits:
            yield f"{server.megabytes} MB after {number}, {(time.perf_counter() - start) / number:.2f} s each"


def stop(server: Server, clients: int) -> str:
    """SIGTERM while all clients ask. Raises `AssertionError` for a wrong answer or exit code."""

    def ask(seed: int) -> int:
        body = FIELDS | {"num_inference_steps": 20}
        return _status(lambda: server.images(0).generate(prompt="a", extra_body=body | {"seed": seed}))[0]

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask, seed) for seed in range(clients)]
        time.sleep(8)  # until several run together
        start = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        statuses = [each.result() for each in asked]
    code = server.process.wait(60)
    counts = ", ".join(f"{statuses.count(status)} x {status or 'none'}" for status in sorted(set(statuses)))
    assert code == 0 and set(statuses) <= {200, 429, 503} and 200 in statuses, (code, counts)
    return f"SIGTERM while {clients} ask: {counts}; exit code {code} after {time.perf_counter() - start:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200, help="a multiple of 20 (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="at a time (default: %(default)s)")
    parser.add_argument("--edits", type=int, default=500, help="after which memory is measured (default: %(default)s)")
    arguments = parser.parse_args()
    with running() as server:
        print(f"{server.megabytes} MB when it is ready", flush=True)
        print(*load(server, arguments.requests, arguments.clients), sep="\n", flush=True)
        for line in endure(server, arguments.edits):
            print(line, flush=True)
        print(stop(server, arguments.clients), flush=True)


if __name__ == "__main__":
    main()
