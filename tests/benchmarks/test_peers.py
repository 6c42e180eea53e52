"""Peers' environments, processes and pages: what fails is told, what is worse is told, and time goes to whom it belongs."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import against, findings, turns
from benchmarks.accounting import Meter, pss_bytes, tree
from benchmarks.against import joined
from benchmarks.bounds import bounds
from benchmarks.fronts.layer import Layers
from benchmarks.fronts.reference import judged
from benchmarks.home import Home
from benchmarks.limits import Limits
from benchmarks.peers.environment import Unavailable, call
from benchmarks.peers.turnout import Gateway, write_panels
from benchmarks.prompts import Prompts
from benchmarks.report import page
from benchmarks.visits import TRIAL
from moe_core.kernels.cpu.native import library

BURN = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def test_a_childs_processor_time_is_the_contestants_not_the_others() -> None:
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", f"input(); {nested}; input()"], stdin=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    try:
        meter = Meter({process.pid})
        meter.start()
        process.stdin.write("\n")
        process.stdin.flush()
        while meter.read()["cpu"] < 0.3:
            assert meter.read()["wall"] < 60
        assert pss_bytes(tree([process.pid])) > 1e6
    finally:
        process.communicate("\n")


def test_what_cannot_be_installed_says_why(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="ended with status 3: no such package"):
        call([sys.executable, "-c", "print('no such package'); raise SystemExit(3)"], tmp_path / "log")


def test_windows_of_the_text_do_not_overlap() -> None:
    prompts = Prompts(list(range(5000)))
    windows = prompts.windows(0, 38, 128)
    assert len({token for window in windows for token in window}) == 38 * 128
    assert all(len(prompts.window(number, 512)) == 512 for number in range(50))


def test_the_judge_measures_how_far_a_token_is_from_the_best() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    prompt = [1, 2, 3]
    best = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    worst = int(model(torch.tensor([prompt])).logits[0, -1].argmin())
    assert judged(model, prompt, [best]) == {"gap": 0.0, "agreement": 1.0}
    assert judged(model, prompt, [worst]) == {"gap": 1.0, "agreement": 0.0}


@pytest.mark.skipif(library() is None, reason="the CPU kernels are not compiled")
@torch.inference_mode()
def test_a_layer_is_checked_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.fronts.layer.COPIES_BYTES", 1e6)
    for kind, most in (("turnout 16", 0.01), ("turnout 8", 0.05), ("turnout 4", 0.3), ("grouped_mm", 0.02)):
        layers = Layers(kind, [64, 64, 4, 2], [1, 5])
        assert max(layers.errors.values()) < most, kind
        found = layers.run(5)
        assert found["wall"] > 0 and 0 < found["active_bytes"] <= 4 * 3 * 64 * 64 * 2


@pytest.mark.skipif(library() is None, reason="the CPU kernels are not compiled")
def test_as_many_bytes_go_round_in_few_bits_as_in_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a cache that holds a quarter of them makes four bits look faster than memory is."""
    monkeypatch.setattr("benchmarks.fronts.layer.COPIES_BYTES", 1e6)
    copies = {bits: len(Layers(f"turnout {bits}", [64, 64, 4, 2], [1]).forwards) for bits in (16, 8, 4)}
    assert copies == {16: 10, 8: 20, 4: 41}


def _run(ours: float, peer: float) -> dict:
    about = {
        "engine bf16": {"peer": "Turnout", "precision": "16 bits", "note": ""},
        "other bf16": {"peer": "Other", "precision": "16 bits", "note": "our front"},
        "other Q8": {"peer": "Other", "precision": "8 bits", "note": "our front"},
    }
    seconds = {"engine bf16": ours, "other bf16": peer, "other Q8": peer / 2}
    samples = [
        {"contestant": name, "metric": metric, "threads": 2, "round": 0, "tokens": 100, "wall": wall, "cpu": wall,
         "foreign": 0.25}
        for name, wall in seconds.items() for metric in ("load", "decode 1")
    ]  # fmt: skip
    verdict = {"gap": 0.001, "agreement": 0.98, "refused": ""}
    return {
        "machine": {"processor": "P", "cores": 2, "isa": "generic", "load": 0.0, "when": "now"}, "seconds": 60.0,
        "trial": False,
        "limits": [{"threads": 2, "read_gb_s": 20.0, "best_read_gb_s": 25.0, "best_operations_s": {"bf16": 4e11}}],
        "contestants": about, "samples": samples, "missing": {"vllm": "no wheel for this machine"},
        "memory": dict.fromkeys(about, 10**9), "verdicts": dict.fromkeys(about, verdict),
        "extra": {"bounds": {"2": {"decode 1": {"engine bf16": 80.0}}}},
    }  # fmt: skip


def test_a_page_tells_losses_and_who_is_missing() -> None:
    text = page(_run(ours=2.0, peer=1.0))
    assert "engine bf16 reaches 0.50 of other bf16." in text
    assert "- vllm: no wheel for this machine" in text
    # 100 tokens in two seconds; half of the peer of the same bits, a quarter of the best of any; 50 of 80 possible.
    assert "| **engine bf16** | 16 | 50.0 (50.0 to 50.0), 1 | 50.0 | 0.50, 0.25 | 62% | 25% |" in text


def test_vllm_counts_by_its_best_round() -> None:
    run = _run(ours=1.0, peer=1.0)
    slow = {**run["samples"][-1], "wall": 4.0, "cpu": 4.0}
    run["samples"] += [slow, slow]
    assert "| **engine bf16** | 16 | 100.0 (100.0 to 100.0), 1 | 100.0 | 1.00, 1.00 |" in page(run)
    run["contestants"]["other Q8"]["peer"] = "vLLM"
    assert "| **engine bf16** | 16 | 100.0 (100.0 to 100.0), 1 | 100.0 | 1.00, 0.50 |" in page(run)


def test_a_page_tells_a_start_that_writes_panels_from_those_that_map_them() -> None:
    run = _run(ours=1.0, peer=1.0)
    assert "write the panels" not in page(run)
    run["extra"]["first_start_s"] = {"engine bf16": 8.25}
    assert "write the panels that these map where none lie yet: engine bf16 8.2 s." in page(run)


@pytest.mark.parametrize(("kind", "place"), [(object, "panels"), (Gateway, "instance/panels")])
def test_panels_are_written_before_anybody_is_measured(tmp_path: Path, kind: type, place: str) -> None:
    """The file gets its name some time after the first token; what others left behind is not waited for."""
    home = Home(tmp_path)
    (folder := tmp_path / place).mkdir(parents=True)
    (folder / ".old.panels.1.tmp").touch()
    half, told = folder / ".new.panels.2.tmp", []

    class Starting(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            """Nothing is there to start."""

        def start(self, threads: int) -> float:
            half.touch()
            threading.Timer(0.3, half.unlink).start()
            told.append(threads)
            return 4.5

        def stop(self) -> None:
            told.append(half.exists())

    assert write_panels(home, Starting(), threads=2) == 4.5  # type: ignore[arg-type]
    assert told == [2, False]


NO_LOSS = "no peer of the same precision was ahead"


def test_a_page_without_losses_says_so() -> None:
    assert NO_LOSS in page(_run(ours=0.1, peer=1.0))


def test_a_page_tells_who_starts_quicker_and_who_is_leaner() -> None:
    run = _run(ours=2.0, peer=1.0)
    run["memory"]["engine bf16"] = 15 * 10**8
    text = page(run)
    assert "- Start until the first token: engine bf16 needs 2.00 s, other bf16 1.00." in text
    assert "- Memory: engine bf16 needs 1.50 GB, other bf16 1.00." in text
    run["samples"] = [
        one for one in run["samples"] if one["metric"] == "load" or one["contestant"] != "other bf16"
    ]
    assert "- Start until the first token" in page(run) and NO_LOSS not in page(run)
    # Whose tokens are wrong is not ahead in anything.
    run["verdicts"] = run["verdicts"] | {
        "other bf16": {"gap": 1.0, "agreement": 0.0, "refused": "other tokens"}
    }
    assert "- Start until" not in page(run) and "- Memory" not in page(run)


@pytest.mark.parametrize("gone", ["other", "two threads"])
def test_where_nothing_was_compared_a_page_does_not_say_that_nobody_was_ahead(gone: str) -> None:
    run = _run(ours=0.1, peer=1.0)
    if gone == "other":
        run["samples"] = [one for one in run["samples"] if not one["contestant"].startswith(gone)]
    else:
        run["samples"] = [one | {"threads": 1} for one in run["samples"]]
    assert "No speed was compared" in page(run) and NO_LOSS not in page(run)


def test_a_prompt_is_bound_by_arithmetic_and_decoding_by_memory(tmp_path: Path) -> None:
    import moe_core
    from moe_core.model.init import random_decoder
    from tests.moe_core.tiny import tiny_mixtral

    moe_core.save(random_decoder(tiny_mixtral(), seed=1), tmp_path / "m", dtype="bfloat16")
    slow, quick = (Limits(1, 1.0, read, {"bf16": 1e9, "int8": 2e9}) for read in (1.0, 2.0))
    first, second = bounds(tmp_path / "m", slow), bounds(tmp_path / "m", quick)
    assert second["decode 1"] == 2 * first["decode 1"]
    assert second["prefill 512"] == first["prefill 512"]


def test_a_part_that_is_measured_later_joins_the_page_of_the_rounds() -> None:
    before, after = _run(ours=1.0, peer=1.0), _run(ours=9.0, peer=9.0)
    before["missing"] |= {"sparse": "no time was left"}
    after |= {
        "samples": [],
        "missing": {},
        "extra": {"sections": [["## Sparse"]], "sparse": {}, "bounds": {}},
    }
    found = joined(before, after)
    assert found["samples"] == before["samples"] and found["missing"] == {"vllm": "no wheel for this machine"}
    assert found["extra"]["bounds"] == before["extra"]["bounds"]
    assert "## Sparse" in page(found)
    again = joined(found, after | {"extra": {"sections": [["## Sparse", "measured anew"]]}})
    assert page(again).count("## Sparse") == 1 and "measured anew" in page(again)


def test_a_prompts_table_tells_the_seconds_until_the_first_token() -> None:
    run = _run(ours=1.0, peer=1.0)
    assert "| first token, s" not in page(run)
    prompts = [
        run["samples"][1]
        | {"contestant": "engine bf16", "metric": "prefill 512", "tokens": 512, "wall": wall}
        for wall in (0.5, 0.625, 1.0)
    ]
    text = page(run | {"samples": [*run["samples"], *prompts]})
    assert "| first token, s, median (least to most) | a processor second |" in text
    assert "| **engine bf16** | 16 | 819.2 (512.0 to 1024.0), 3 | 0.62 (0.50 to 1.00) | 512.0 |" in text


def test_a_page_tells_which_memory_was_read_how_often_and_shares_above_the_limit() -> None:
    run = _run(ours=1.0, peer=1.0)
    assert "| 2 | 20.0 (to 25.0) | 512 MB, shared, in small pages | 400 | – |" in page(run)
    run["limits"][0] |= {"readings_gb_s": [15.0, 20.0, 25.0], "huge_share": 1.0}
    text = page(run)
    assert "| 2 | 20.0 (15.0 to 25.0), 3 | 512 MB, private, 100% in huge pages | 400 | – |" in text
    # 100 tokens a second where 80 were thought possible.
    assert "| 125% | 25% |" in text and "above 100 % was read faster than the loop" in text
    assert "None is told of requests at once" in text and "nor of peers in 8 and 4 bits" in text


def test_limits_are_measured_before_between_and_after_and_shares_are_of_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a part found is set against the best reading of the whole run, also one that came after it."""
    rates, told = iter(range(1, 100)), []

    def measured(native: object, threads: int, repeats: int, clock: str) -> Limits:
        rate = float(next(rates))
        return Limits(threads, rate, rate, {"bf16": 1e9}, (rate,), 1.0)

    monkeypatch.setattr(findings, "measure", measured)
    monkeypatch.setattr(findings, "library", object)
    monkeypatch.setattr(turns, "visited", lambda *_: told.append("visit"))
    monkeypatch.setattr(against, "gathered", lambda run, names: [Idle()])
    # Nothing is installed for what is not asked.
    monkeypatch.setattr(against.transformers, "ENVIRONMENT", SimpleNamespace(python=lambda home: tmp_path))
    monkeypatch.setattr(against.vllm, "python_of", lambda home: tmp_path)
    monkeypatch.setattr(against, "model_dir", lambda name, home: tmp_path)
    monkeypatch.setattr(against.Prompts, "of", lambda path: Prompts([]))
    monkeypatch.setattr(against, "Judge", lambda python, model: Idle())
    monkeypatch.setattr(against, "bounds_of", lambda run, servers: {"best": run.limits[-1].best_read_gb_s})

    def layers_measured(*_: object, **__: object) -> dict[str, object]:
        told.append("layers")
        return {}

    monkeypatch.setattr(against.layers, "layers_measured", layers_measured)
    monkeypatch.setattr(against.layers, "section", lambda found, limit: [f"at most {limit.best_read_gb_s}"])
    run = findings.Run(Home(tmp_path), 60.0, TRIAL, parts=["layers"])
    against.compared(run, [])
    assert told == ["visit", "layers"]
    # Before the round, after it, and at the end.
    assert [len(one.readings_gb_s) for one in run.limits] == [3, 3]
    assert run.extra["bounds"] == {"best": 6.0} and run.extra["sections"] == [["at most 6.0"]]


class Idle:
    """A contestant, and a judge, of whom nothing is asked."""

    name, peer, precision, stays, threads = "idle", "Idle", "16 bits", False, 1

    def thaw(self) -> None:
        """Never frozen."""

    def stop(self) -> None:
        """Never started."""

    def close(self) -> None:
        """Never opened."""
