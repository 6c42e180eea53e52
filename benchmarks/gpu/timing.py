"""Times on a GPU: events around many calls, graphs for what is shorter than a launch, weights never warm in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def milliseconds(
    call: Callable[[int], object], copies: int, *, budget_ms: float = 30.0, graph: bool = False
) -> float:
    """Mean time of `call(i)`, i going round the copies of its weights, over about `budget_ms`."""
    run: Callable[[], object] = lambda: [call(i) for i in range(copies)]  # noqa: E731
    run()
    torch.cuda.synchronize()
    if graph:
        run = captured(run)
        run()
    once = _elapsed(run, 1)
    repeats = max(2, min(200, int(budget_ms / max(once, 1e-3))))
    return _elapsed(run, repeats) / repeats / copies


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The same as the replay of a graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _elapsed(run: Callable[[], object], repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    ordered = sorted(times)
    return {"median": ordered[len(ordered) // 2], "min": ordered[0], "max": ordered[-1]}


def roofline() -> dict[str, float]:
    """GB/s of a device-to-device copy (read plus written) and TFLOP/s of a large bfloat16 product, on random data."""
    source = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy_ms = milliseconds(lambda _: target.copy_(source), 1, budget_ms=60)
    read_ms = milliseconds(lambda _: source.view(torch.float32).sum(), 1, budget_ms=60)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_ms = milliseconds(lambda _: a @ b, 1, budget_ms=60)
    num_bytes = source.numel() * 2
    return {
        "copy_GBps": 2 * num_bytes / copy_ms / 1e6,
        "read_GBps": num_bytes / read_ms / 1e6,
        "bf16_TFLOPs": 2 * 8192**3 / product_ms / 1e9,
    }
