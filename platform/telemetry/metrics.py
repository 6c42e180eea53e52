"""Prometheus: bounded aggregates in vLLM's names, seconds and not milliseconds; never layer × expert.

A deployment is one label value, and at most MAX_DEPLOYMENTS are told. Source of the names: docs.vllm.ai, "Metrics".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from accounts.models import Team
from deployments.models import Deployment
from deployments.selectors import Standing, deployments_of, standing_of
from telemetry import balance, latency
from telemetry.boards import window_from_rows
from telemetry.models import Board
from telemetry.selectors import gauges_of, version_shown
from telemetry.tally import Tally

MAX_DEPLOYMENTS = 100
# A coarse choice of the histogram's edges: 14 series a deployment and metric, not 84.
BUCKET_STEP = 7
LABELS = ("model_name", "deployment")
Metric = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily


class TeamCollector(Collector):
    """Collects the metrics of one team's deployments when asked."""

    def __init__(self, team: Team, now_s: int) -> None:
        self.team, self.now_s = team, now_s

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        shown = list(deployments_of(self.team)[:MAX_DEPLOYMENTS])
        boards = {board.deployment_id: board for board in Board.objects.filter(deployment__in=shown)}
        yield from self._standings(shown)
        yield from self._gauges(shown, boards)
        yield from self._totals(shown, boards)
        yield from self._balance(shown)

    def _standings(self, shown: list[Deployment]) -> Iterator[Metric]:
        wanted = _gauge("turnout:replicas_wanted", "Replicas that are wanted.")
        ready = _gauge("turnout:replicas_ready", "Replicas of the live version that answer.")
        for deployment in shown:
            standing: Standing = standing_of(deployment)
            wanted.add_metric(_labels(deployment), standing.wanted)
            ready.add_metric(_labels(deployment), standing.ready)
        yield from (wanted, ready)

    def _gauges(self, shown: list[Deployment], boards: dict[int, Board]) -> Iterator[Metric]:
        running = _gauge("vllm:num_requests_running", "Requests in the running batch.")
        waiting = _gauge("vllm:num_requests_waiting", "Requests that wait for a place in the batch.")
        cache = _gauge("vllm:kv_cache_usage_perc", "Share of the key-value cache in use, 0 to 1.")
        threads = _gauge(
            "turnout:decode_threads", "Threads that decoding steps take now, of its engines together."
        )
        for deployment in shown:
            gauges = gauges_of(boards.get(deployment.pk), self.now_s)
            total = gauges.get("kv_total", 0)
            running.add_metric(_labels(deployment), gauges.get("running", 0))
            waiting.add_metric(_labels(deployment), gauges.get("waiting", 0))
            cache.add_metric(_labels(deployment), gauges.get("kv_used", 0) / total if total else 0.0)
            threads.add_metric(_labels(deployment), gauges.get("decode_threads", 0))
        yield from (running, waiting, cache, threads)

    def _totals(self, shown: list[Deployment], boards: dict[int, Board]) -> Iterator[Metric]:
        prompt = CounterMetricFamily("vllm:prompt_tokens", "Prompt tokens computed.", labels=LABELS)
        output = CounterMetricFamily("vllm:generation_tokens", "Tokens generated.", labels=LABELS)
        first = HistogramMetricFamily(
            "vllm:time_to_first_token_seconds", "Time to first token.", labels=LABELS
        )
        inter = HistogramMetricFamily(
            "vllm:inter_token_latency_seconds", "Time between tokens.", labels=LABELS
        )
        for deployment in shown:
            board = boards.get(deployment.pk)
            tally = Tally.of_row(board) if board else Tally()
            prompt.add_metric(_labels(deployment), tally.prompt_tokens)
            output.add_metric(_labels(deployment), tally.output_tokens)
            first.add_metric(_labels(deployment), *_buckets(tally.first_token))
            inter.add_metric(_labels(deployment), *_buckets(tally.inter_token))
        yield from (prompt, output, first, inter)

    def _balance(self, shown: list[Deployment]) -> Iterator[Metric]:
        vio = _gauge(
            "moe_layer_max_violation", "Busiest expert over the mean, minus one; mean of layers, last minute."
        )
        asleep = _gauge("moe_dead_expert_ratio", "Share of experts that got no token in the last minute.")
        share = GaugeMetricFamily(
            "moe_domain_mapped_share",
            "Share of a domain's tokens whose top-k held one of its own experts; mean of layers, last minute.",
            labels=(*LABELS, "domain"),
        )
        for deployment in shown:
            version = version_shown(deployment)
            if version is None:
                continue
            cube = window_from_rows(deployment.pk, version, self.now_s).total().cube
            load_LE = cube.load_LE()
            violation = balance.max_violation(load_LE)
            if violation is None:
                continue
            vio.add_metric(_labels(deployment), violation)
            asleep.add_metric(_labels(deployment), len(balance.asleep(cube, load_LE)) / load_LE.size)
            for code, reached in balance.mapped_share_by_domain(cube).items():
                share.add_metric((*_labels(deployment), code), reached)
        yield from (vio, asleep, share)


def registry_of(team: Team, now_s: int) -> CollectorRegistry:
    """Return a registry that holds one team's metrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(TeamCollector(team, now_s))
    return registry


def _gauge(name: str, words: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, words, labels=LABELS)


def _labels(deployment: Deployment) -> tuple[str, str]:
    return deployment.name, str(deployment.pk)


def _buckets(histogram: latency.Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets in seconds, and the sum as far as the edges tell it."""
    sums = histogram.cumsum()
    chosen: Iterable[int] = range(BUCKET_STEP - 1, latency.NUM_BUCKETS, BUCKET_STEP)
    buckets = [(f"{latency.EDGES_MS[index] / 1000:.6g}", float(sums[index])) for index in chosen]
    buckets.append(("+Inf", float(sums[-1])))
    return buckets, float((histogram * latency.EDGES_MS).sum() / 1000)
