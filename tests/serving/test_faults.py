"""What goes wrong: on the way here, on the device, and with those who ask."""

import asyncio
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
from PIL import Image

from tests.serving.conftest import png, served, until
from tt_flux_kontext.serving import server as server_module
from tt_flux_kontext.serving.errors import ApiError, refused
from tt_flux_kontext.serving.review import Filter, load_filter
from tt_flux_kontext.serving.settings import Settings

TWO_STEPS = {"num_inference_steps": 2}


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def begin(pool, server, prompt: str, **fields):
    """A request in a thread of its own, as a future."""
    return pool.submit(server.ask, "/v1/images/generations", {"prompt": prompt, **TWO_STEPS, **fields})


def code(answer) -> str:
    return answer.said["error"]["code"]


class TestQueue:
    def test_full(self, puppet, serve_puppet, pool):
        """One more than may wait is sent away, with the seconds until it's worth another try; the others are made."""
        with serve_puppet(queue=2, together=1) as server:
            answers = [begin(pool, server, "at work")]
            until(lambda: puppet.begun == ["at work"])
            answers += [begin(pool, server, "waits") for _ in range(2)]
            until(lambda: "tt_flux_kontext_waiting 2.0" in server.ask("/metrics").said)
            answer = server.ask("/v1/images/generations", {"prompt": "too many"})
            assert answer.status == 429 and code(answer) == "queue_full"
            assert answer.said["error"]["type"] == "rate_limit_error" and int(answer.headers["retry-after"]) >= 1
            puppet.go()
            assert [each.result().status for each in answers] == [200] * 3
            assert puppet.begun == ["at work", "waits", "waits"]
            assert server.outcomes() == {"ok": 3, "queue full": 1}

    def test_retry_after_is_what_edits_take(self, puppet, serve_puppet, pool):
        with serve_puppet(queue=1, together=1) as server:
            server.service.worker._seconds.extend([30.0, 50.0])
            answers = [begin(pool, server, "at work")]
            until(lambda: puppet.begun)
            answers.append(begin(pool, server, "waits"))
            until(lambda: "tt_flux_kontext_waiting 1.0" in server.ask("/metrics").said)
            assert server.ask("/v1/images/generations", {"prompt": "a"}).headers["retry-after"] == "40"
            puppet.go()

    def test_too_late_already(self, puppet, serve_puppet, pool):
        """Who would wait for longer than a request may take is told so at once; with nobody before him he may try."""
        with serve_puppet(seconds=100.0, together=1) as server:
            server.service.worker._seconds.append(120.0)
            answers = [begin(pool, server, "at work")]
            until(lambda: puppet.begun)
            assert code(server.ask("/v1/images/generations", {"prompt": "a"})) == "queue_full"
            puppet.go()
            assert answers[0].result().status == 200

    def test_openai_retries(self, puppet, serve_puppet, pool):
        """The client comes again after the seconds that it was told."""
        with serve_puppet(queue=1, together=1) as server:
            answers = [begin(pool, server, "at work")]
            until(lambda: puppet.begun)
            answers.append(begin(pool, server, "waits"))
            until(lambda: "tt_flux_kontext_waiting 1.0" in server.ask("/metrics").said)
            client = server.client(max_retries=3)
            later = pool.submit(client.images.generate, prompt="later", extra_body=TWO_STEPS)
            until(lambda: server.outcomes().get("queue full") == 1)
            puppet.go()
            assert later.result().data

    def test_together(self, puppet, serve_puppet, pool):
        """Those that wait when the device is free, up to a number."""
        with serve_puppet(together=2) as server:
            answers = [begin(pool, server, "first")]
            until(lambda: puppet.begun)
            answers += [begin(pool, server, "other") for _ in range(3)]
            until(lambda: "tt_flux_kontext_waiting 3.0" in server.ask("/metrics").said)
            puppet.go(2)
            until(lambda: "tt_flux_kontext_at_work 2.0" in server.ask("/metrics").said)
            puppet.go()
            assert [each.result().status for each in answers] == [200] * 4


class TestClients:
    def leave(self, server, prompt: str, **fields) -> None:
        """Asks, and closes the connection after a moment."""
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=0.5).images.generate(prompt=prompt, extra_body=TWO_STEPS, **fields)

    def test_leaves_while_at_work(self, puppet, serve_puppet, pool):
        """The edit ends after the step at work, and the next begins."""
        with serve_puppet() as server:
            self.leave(server, "left")
            until(lambda: server.outcomes() == {"left": 1})
            answer = begin(pool, server, "next")
            puppet.go(1)
            until(lambda: puppet.begun == ["left", "next"])
            puppet.go()
            assert answer.result().status == 200

    def test_leaves_a_stream(self, puppet, serve_puppet):
        with serve_puppet() as server:
            client = server.client(timeout=1)
            with pytest.raises(openai.APITimeoutError):
                list(client.images.generate(prompt="left", stream=True, extra_body=TWO_STEPS))
            until(lambda: server.outcomes() == {"left": 1})
            puppet.go(1)
            until(lambda: "tt_flux_kontext_at_work 0.0" in server.ask("/metrics").said)

    def test_leaves_the_queue(self, puppet, serve_puppet, pool):
        """What nobody waits for any more is never begun."""
        with serve_puppet(together=1) as server:
            answer = begin(pool, server, "first")
            until(lambda: puppet.begun)
            self.leave(server, "left")
            until(lambda: "tt_flux_kontext_waiting 0.0" in server.ask("/metrics").said)
            puppet.go()
            assert answer.result().status == 200 and puppet.begun == ["first"]

    def test_time_limit(self, puppet, serve_puppet):
        """Of waiting and work together. Clients are told not to send it again."""
        with serve_puppet(seconds=0.5) as server:
            answer = server.ask("/v1/images/generations", {"prompt": "a"})
            assert answer.status == 504 and code(answer) == "time_limit"
            assert answer.headers["x-should-retry"] == "false"
            assert server.outcomes() == {"late": 1}

    def test_stream_pings(self, puppet, serve_puppet, pool, monkeypatch):
        """Comments, which clients skip, while there is nothing to say, be it in the queue or at work."""
        monkeypatch.setattr("tt_flux_kontext.serving.service.PING", 0.1)
        with serve_puppet() as server:
            first = begin(pool, server, "first")
            until(lambda: puppet.begun)
            answer = begin(pool, server, "a", stream=True)
            time.sleep(0.5)
            puppet.go(2)
            assert first.result().status == 200
            until(lambda: len(puppet.begun) == 2)
            time.sleep(0.5)
            puppet.go()
            lines = answer.result().said.split("\n\n")
            assert lines.count(": at work") > 5 and lines[-2].startswith("event: image_generation.completed")


class TestDevice:
    def test_failure(self, puppet, serve_puppet):
        """One that fails is told so without the device's own words; after three in a row the server is ill."""
        puppet.go()
        with serve_puppet() as server:
            puppet.fails = RuntimeError("a kernel's own words")
            for _ in range(3):
                assert server.ask("/health").status == 200
                answer = server.ask("/v1/images/generations", {"prompt": "a"})
                assert answer.status == 500 and code(answer) == "edit_failed"
                assert "own words" not in answer.said["error"]["message"]
            assert server.ask("/health").status == server.ask("/v1/health").status == 503
            puppet.fails = None
            assert server.ask("/v1/images/generations", {"prompt": "a"}).status == 200
            assert server.ask("/health").status == 200

    def test_numbers_out_of_range(self, puppet, serve_puppet):
        """Are no fault of the device's, however many ask for them."""
        puppet.go()
        with serve_puppet() as server:
            puppet.fails = FloatingPointError("latents that are NaN")
            for _ in range(4):
                answer = server.ask("/v1/images/generations", {"prompt": "a", "guidance_scale": 1e9})
                assert answer.status == 500 and answer.said["error"]["message"] == "latents that are NaN"
            assert server.ask("/health").status == 200

    def test_failure_in_a_stream(self, puppet, serve_puppet):
        puppet.go()
        with serve_puppet() as server:
            puppet.fails = RuntimeError("a kernel's own words")
            with pytest.raises(openai.APIError, match="failed on the device"):
                list(server.client().images.generate(prompt="a", stream=True))

    def test_fault_of_the_server(self, puppet, serve_puppet, monkeypatch):
        """Answered in the same form, also in a stream that has begun."""
        puppet.go()
        with serve_puppet() as server:
            monkeypatch.setattr("tt_flux_kontext.serving.order.to_file", lambda *arguments: 1 / 0)
            answer = server.ask("/v1/images/generations", {"prompt": "a"})
            assert answer.status == 500 and code(answer) == "server_failed"
            with pytest.raises(openai.APIError, match="its log says more"):
                list(server.client().images.generate(prompt="a", stream=True))
            assert server.outcomes() == {"failed": 2}

    def test_one_of_several_fails(self, puppet, serve_puppet, pool):
        with serve_puppet(together=2) as server:
            first = begin(pool, server, "first")
            until(lambda: puppet.begun)
            others = [begin(pool, server, "fails"), begin(pool, server, "other")]
            until(lambda: "tt_flux_kontext_waiting 2.0" in server.ask("/metrics").said)
            puppet.go(2)
            assert first.result().status == 200
            until(lambda: len(puppet.begun) == 2)
            puppet.fails = RuntimeError("a kernel's own words")
            puppet.go(1)
            until(lambda: len(puppet.begun) == 3)
            puppet.fails = None
            puppet.go()
            assert sorted(each.result().status for each in others) == [200, 500]

    def test_while_weights_load(self):
        """Alive, but not ready."""
        loaded = threading.Event()

        @contextmanager
        def slow():
            loaded.wait()
            yield None

        with served(slow, Settings("slow")) as server:
            assert server.ask("/health").said == {"status": "loading"}
            assert server.ask("/v1/health").status == 503
            answer = server.ask("/v1/images/generations", {"prompt": "a"})
            assert answer.status == 503 and code(answer) == "loading" and answer.headers["retry-after"]
            loaded.set()

    def test_weights_that_cannot_be_loaded(self):
        @contextmanager
        def wrong():
            raise ValueError("no such folder")
            yield

        with served(wrong, Settings("wrong")) as server:
            until(lambda: server.ask("/health").status == 503)
            assert str(server.service.worker.error) == "no such folder"

    def test_stop(self, puppet, serve_puppet, pool):
        """What runs ends; what waits, and what comes, is sent away."""
        with serve_puppet(together=1) as server:
            running = begin(pool, server, "runs")
            until(lambda: puppet.begun)
            waiting = begin(pool, server, "waits")
            until(lambda: "tt_flux_kontext_waiting 1.0" in server.ask("/metrics").said)
            server.service.worker.stop()
            for answer in (waiting.result(), server.ask("/v1/images/generations", {"prompt": "a"})):
                assert answer.status == 503 and code(answer) == "stopping"
            assert server.ask("/v1/health").said["status"] == "stopping"
            puppet.go()
            assert running.result().status == 200


class TestGate:
    def test_key(self, puppet, serve_puppet):
        puppet.go()
        with serve_puppet(api_key="secret") as server:
            assert server.ask("/health").status == server.ask("/v1/health").status == 200
            for path in ("/metrics", "/v1/models", "/v1/images/generations", "/nowhere"):
                for headers in ({}, {"authorization": "Bearer secre"}, {"authorization": "Basic secret"}):
                    answer = server.ask(path, **headers)
                    assert answer.status == 401 and code(answer) == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                server.client(api_key="wrong").images.generate(prompt="a")
            assert server.client(api_key="secret").images.generate(prompt="a").data

    def test_nowhere(self, serve_puppet):
        with serve_puppet() as server:
            assert server.ask("/v1/chat").said["error"]["message"] == "Not Found"
            assert server.ask("/v1/images/edits").status == 405

    def test_no_json(self, serve_puppet):
        with serve_puppet() as server:
            for body in (b"{", b"[]"):
                answer = self.send(server, f"content-length: {len(body)}\r\n", body)
                assert answer.startswith(b"HTTP/1.1 400") and b"no JSON" in answer

    def test_large_by_its_head(self, serve_puppet):
        """Answered before it is read, and read by a client that is still sending."""
        with serve_puppet(upload_bytes=2**20) as server:
            with pytest.raises(openai.APIStatusError) as caught:
                server.client().images.edit(image=("a.png", bytes(8 * 2**20)), prompt="a")
            assert caught.value.status_code == 413 and caught.value.code == "request_too_large"

    def test_large_without_a_head_that_says_so(self, serve_puppet):
        with serve_puppet(upload_bytes=2**10) as server:
            chunk = b"400\r\n" + bytes(2**10) + b"\r\n"
            answer = self.send(server, "transfer-encoding: chunked\r\n", chunk * 2)
            assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer

    def test_slow_upload(self, serve_puppet):
        """One byte at a time doesn't hold a connection for longer than uploads may take."""
        with serve_puppet(upload_seconds=0.5) as server:
            begun = time.monotonic()
            answer = self.send(server, "content-length: 100\r\n", b"{", pause=0.05)
            assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - begun < 5

    def test_slow_head(self, serve_puppet, monkeypatch):
        monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.5)
        with serve_puppet() as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"POST /v1/images/edits HTTP/1.1\r\n")
            assert connection.recv(100) == b""  # closed

    def send(self, server, headers: str, body: bytes, pause: float = 0.0) -> bytes:
        """POST with these headers; with a pause one byte after the other. The whole answer."""
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            head = f"POST /v1/images/generations HTTP/1.1\r\nhost: here\r\n{headers}\r\n"
            connection.sendall(head.encode())
            if not pause:
                connection.sendall(body)
            connection.settimeout(pause or 10)
            answer = b""
            while b"\r\n\r\n" not in answer or b"}}" not in answer:
                try:
                    answer += connection.recv(2**16)
                except TimeoutError:
                    connection.sendall(body)
            return answer


class TestFilter:
    def filters(self, seen: list):
        def refuse(prompts, pictures):
            seen.append((prompts, [picture.size for picture in pictures]))
            if "forbidden" in prompts:
                return "not this"
            if any(picture.size == (48, 48) for picture in pictures):
                return "not with that picture"
            return None

        return Filter(refuse)

    def test_what_is_asked(self, puppet, serve_puppet):
        """All that is said in words, and the pictures; nothing is begun."""
        puppet.go()
        with serve_puppet(self.filters([])) as server:
            for fields in ({"prompt": "forbidden"}, {"prompt": "a", "negative_prompt": "forbidden"}):
                answer = server.ask("/v1/images/generations", fields)
                assert answer.status == 400 and code(answer) == "moderation_blocked"
                assert answer.said["error"]["message"] == "Refused by the server's filter: not this"
            with pytest.raises(openai.BadRequestError, match="not with that picture"):
                server.client().images.edit(image=png(Image.new("RGB", (48, 48))), prompt="a")
            assert puppet.begun == []

    def test_what_comes_of_it(self, puppet, serve_puppet):
        puppet.go()
        seen = []
        with serve_puppet(self.filters(seen)) as server:
            assert server.ask("/v1/images/generations", {"prompt": "a", "n": 2}).status == 200
            assert seen == [(["a"], []), (["a"], [(32, 32)] * 2)]

    def test_nothing_passes_a_broken_one(self, puppet, serve_puppet):
        puppet.go()
        with serve_puppet(Filter(lambda prompts, pictures: 1 / 0)) as server:
            answer = server.ask("/v1/images/generations", {"prompt": "a"})
            assert answer.status == 500 and code(answer) == "filter_failed" and puppet.begun == []

    def test_partial_pictures(self, tiny, monkeypatch):
        """They are shown too."""

        async def review(prompts, pictures):
            if pictures:
                raise refused("not that")

        monkeypatch.setattr(tiny.service, "_review", review)
        events = tiny.client().images.generate(
            prompt="a", stream=True, partial_images=1, extra_body={"num_inference_steps": 5, "max_sequence_length": 16}
        )
        with pytest.raises(openai.APIError, match="not that"):
            list(events)

    def test_modules(self, tmp_path, monkeypatch):
        (tmp_path / "house_rules.py").write_text("def refuse(prompts, pictures):\n    return 'no'\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
        with pytest.raises(ApiError, match="Refused by the server's filter: no"):
            asyncio.run(load_filter("house_rules")(["a"], []))
        with pytest.raises(ValueError, match="'json' is no filter"):
            load_filter("json")
        with pytest.raises(ValueError, match="'no.such' is no filter"):
            load_filter("no.such")
