"""Two cards behind one address: a local Ray cluster with emulated replicas, of which one is killed under load."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.conftest import Served, png
from tt_flux_kontext.serving import cards

pytest.importorskip("ray", reason="Ray isn't installed: the extra `ray`")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray

SHORT = {"max_sequence_length": 16, "num_inference_steps": 4}
CARDS = [f"{os.getpid()}{i}" for i in range(2)]  # numbers that no other test has
PREFIX = "tt_flux_kontext"


class Cluster(Served):
    """Replicas behind one address."""

    def each(self, metric: str) -> dict[str, float]:
        """Sums of a metric by card."""
        sums = {}
        for family in text_string_to_metric_families(self.ask("/metrics").said):
            for sample in family.samples:
                if sample.name == f"{PREFIX}_{metric}":
                    card = sample.labels["card"].rpartition(":")[2]
                    sums[card] = sums.get(card, 0) + sample.value
        return sums

    def wait_for(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it didn't happen in time"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tiny_checkpoint) -> Iterator[Cluster]:
    import ray  # takes seconds
    from ray import serve

    from tt_flux_kontext.serving.ray_app import Arguments, build

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else it writes one into the home folder
        patch.setenv(cards.GROUPS, " ".join(CARDS))
        port = 31000 + os.getpid() % 10000
        ray.init(num_cpus=4, resources={"tt_card": 2}, include_dashboard=False, object_store_memory=100 * 2**20)
        try:
            serve.start(http_options={"port": port})
            line = f"--weights {tiny_checkpoint} --device emulated --max-area 1024 --queue 4 --together 1"
            serve.run(build(Arguments(serve=line, replicas=2)))
            yield Cluster(f"http://127.0.0.1:{port}", service=None)
        finally:
            serve.shutdown()
            ray.shutdown()
            for card in CARDS:
                lock(card).unlink(missing_ok=True)


def lock(card: str) -> Path:
    return Path(tempfile.gettempdir(), f"{PREFIX}_card_{card}.lock")


def process(card: str) -> int:
    """That has the card."""
    return int(lock(card).read_text())


@pytest.mark.slow
class TestCluster:
    def test_each_has_a_card(self, cluster):
        """Of its own, and a process."""
        cluster.wait_for(lambda: set(cluster.each("waiting")) == set(CARDS))
        assert process(CARDS[0]) != process(CARDS[1])
        assert cluster.ask("/v1/health").said["status"] == "ready"

    def test_share(self, cluster):
        """Two requests at a time go to two cards, also after a while without any."""

        def one(_=None) -> None:
            cluster.client().images.generate(prompt="a", extra_body=SHORT)

        one()  # before the first one the front doesn't know their queues
        before = cluster.each("request_seconds_count")
        with ThreadPoolExecutor(2) as pool:
            for pause in (0.5, 0.5, 0.5, 11):
                time.sleep(pause)
                list(pool.map(one, range(2)))
        assert cluster.each("request_seconds_count") == {card: before.get(card, 0) + 4 for card in CARDS}

    def test_large_by_its_head(self, cluster):
        """The front looks at requests as the server does, before they are read."""
        with pytest.raises(openai.APIStatusError) as caught:
            cluster.client().images.edit(image=("a.png", bytes(65 * 2**20)), prompt="a")
        assert caught.value.status_code == 413

    def test_leaves(self, cluster):
        """The edit ends after the step at work."""
        with pytest.raises(openai.APITimeoutError):
            body = SHORT | {"num_inference_steps": 100}
            cluster.client(timeout=1).images.generate(prompt="a", extra_body=body)
        cluster.wait_for(lambda: sum(cluster.each("at_work").values()) == 0, seconds=5)
        assert "left" in cluster.outcomes()

    def test_killed_under_load(self, cluster):
        """Each request is answered, or refused with the seconds until another try; tried again, all are answered.

        The picture is that of the request's own seed, whichever card made it. The card that was killed comes back, in
        a process of its own.
        """
        refused = []

        def edit(seed: int) -> str:
            """Tries until there is a picture. Any other error ends the test."""
            while True:
                try:
                    return ask(seed)
                except (openai.RateLimitError, openai.InternalServerError) as error:
                    assert error.status_code in (429, 503), error
                    refused.append(error.code)
                    time.sleep(float(error.response.headers["retry-after"]))

        def ask(seed: int) -> str:
            body = SHORT | {"seed": seed}
            picture = png(Image.new("RGB", (32, 32), (seed * 16, 0, 0)))
            return cluster.client().images.edit(image=picture, prompt="a", extra_body=body).data[0].b64_json

        killed = process(CARDS[0])
        with ThreadPoolExecutor(12) as pool:
            answers = [pool.submit(edit, seed) for seed in range(12)]
            cluster.wait_for(lambda: cluster.each("at_work") == dict.fromkeys(CARDS, 1))
            os.kill(killed, signal.SIGKILL)
            pictures = [answer.result(120) for answer in answers]
        assert "card_lost" in refused
        cluster.wait_for(lambda: set(cluster.each("waiting")) == set(CARDS))
        assert process(CARDS[0]) not in (killed, process(CARDS[1]))
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(edit, range(12))) == pictures
        assert len(set(pictures)) == 12
        assert all(cluster.each("request_seconds_count").values())

    def test_killed_in_a_stream(self, cluster):
        """Who reads events gets an error as the last one."""
        body = SHORT | {"num_inference_steps": 100}
        stream = cluster.client().images.generate(prompt="a", stream=True, partial_images=3, extra_body=body)
        assert next(iter(stream)).type == "image_generation.partial_image"
        (card,) = [card for card, at_work in cluster.each("at_work").items() if at_work]
        os.kill(process(card), signal.SIGKILL)
        with pytest.raises(openai.APIError, match="lost"):
            list(stream)
        cluster.wait_for(lambda: set(cluster.each("waiting")) == set(CARDS))


class TestCards:
    def test_no_two_have_one(self, tmp_path):
        """Nor a group with a card that another has."""
        first, held = cards.take(["0", "1"], tmp_path)
        second, _other = cards.take(["0", "1"], tmp_path)
        assert (first, second) == ("0", "1")
        for group in ("0", "1,2", "2,0"):
            with pytest.raises(RuntimeError, match="have all cards"):
                cards.take([group], tmp_path, seconds=0)
        third, _third = cards.take(["2,3"], tmp_path)  # was not kept with 0
        held.close()
        assert third == "2,3" and cards.take(["1,2", "0"], tmp_path, seconds=0)[0] == "0"

    def test_of_a_process_that_was_killed(self, tmp_path):
        hold = f"from tt_flux_kontext.serving import cards; held = cards.take(['0'], '{tmp_path}'); print(); input()"
        line = [sys.executable, "-c", hold]
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            other.stdout.readline()
            with pytest.raises(RuntimeError):
                cards.take(["0"], tmp_path, seconds=0)
            assert (tmp_path / f"{PREFIX}_card_0.lock").read_text() == f"{other.pid}\n"
            threading.Timer(0.5, other.kill).start()
            assert cards.take(["0"], tmp_path)[0] == "0"

    def test_groups(self, monkeypatch, tmp_path):
        monkeypatch.setattr(cards, "NODES", tmp_path)
        with pytest.raises(RuntimeError, match=cards.GROUPS):
            cards.groups()
        for name in ("10", "2", "by-id"):
            (tmp_path / name).touch()
        assert cards.groups() == ["2", "10"]
        monkeypatch.setenv(cards.GROUPS, "0,1 2,3")
        assert cards.groups() == ["0,1", "2,3"]


def test_replicas_choose_their_cards_before_ttnn():
    """Which reads TT_VISIBLE_DEVICES when it is imported."""
    look = "import sys, tt_flux_kontext.serving.replica; sys.exit('ttnn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look]).returncode == 0


def test_metrics_of_several_cards():
    """Each of their numbers stands once, with its card."""
    from tt_flux_kontext.serving.front import merged

    texts = {card: f'# HELP a_total What.\n# TYPE a_total counter\na_total{{b="c"}} {card}\n' for card in "12"}
    lines = merged(texts).decode().splitlines()
    assert [line for line in lines if line[0] != "#"] == ['a_total{b="c",card="1"} 1.0', 'a_total{b="c",card="2"} 2.0']
    assert lines.count("# TYPE a_total counter") == 1
