"""With a part of the experts in a device's pool a model says the same to the bit, however late or early copies come.

The device is the processor here, or a torch.cuda that is played by the test; no GPU is needed, and none is seen.
"""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_core
from moe_core.engine import runner
from moe_core.engine.copy_stream import CopyStream, GpuCopyStream, ThreadCopyStream
from moe_core.engine.device_pool import DevicePool, DeviceTier
from moe_core.engine.engine import Engine
from moe_core.engine.expert_cache import hit_rate, optimal_hit_rate
from moe_core.engine.residency import ResidentExperts, load_resident
from moe_core.engine.trace import trace
from moe_core.errors import EngineError, SpecError
from moe_core.kernels import dispatch
from moe_core.model.init import random_decoder
from moe_core.operations import quantise
from moe_core.routers import Routing
from moe_core.spec import RoutingSpec
from moe_core.spec.operations import QuantiseSpec
from tests.moe_core.engine.conftest import serve_spec
from tests.moe_core.engine.copy_streams import EagerStream, Gpu, LateStream
from tests.moe_core.engine.model_dirs import tiny_model, write_model_dir
from tests.moe_core.engine.test_expert_cache import skewed
from tests.moe_core.engine.test_residency import DOMAINS, PROMPTS, answers
from tests.moe_core.tiny import STD, tiny_family

NUM_LAYERS, NUM_EXPERTS = 3, 8
EVERY = NUM_LAYERS * NUM_EXPERTS
MOE = {"moe_layers": [0, 1, 2], "num_experts": NUM_EXPERTS, "top_k": 2, "moe_intermediate_size": 16}
STREAMS = {"late": LateStream, "eager": EagerStream, "a thread": ThreadCopyStream}
CAPACITY = st.integers(NUM_EXPERTS, EVERY)
TRACES = st.lists(
    st.sets(st.integers(0, NUM_EXPERTS - 1), min_size=1, max_size=NUM_EXPERTS).map(sorted), max_size=40
)


@pytest.fixture(autouse=True)
def same_operations(monkeypatch) -> None:
    """Kernels that read no pool are left out: an engine that was started before in this process has put its own first."""
    monkeypatch.setattr(dispatch, "_KERNELS", [one for one in dispatch._KERNELS if one.pooled is not None])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    write_model_dir(path, tiny_model(5, family="turnout_moe", moe=MOE))
    return path


@pytest.fixture(scope="module")
def whole(model_dir):
    return [mlp.experts for mlp in moe_core.load(model_dir).moe_layers()]


def pooled(model_dir, capacity: int, host: int | None, stream: CopyStream, dtype="float32", **more):
    tier = DeviceTier(stream, capacity)
    return load_resident(model_dir, dtype, host, more.pop("routing", RoutingSpec()), device=tier, **more)


def visit(residency: ResidentExperts, layer: int, experts: list[int]) -> None:
    nothing = torch.zeros(1, NUM_EXPERTS)
    residency.visit(layer, Routing(torch.tensor([experts]), torch.ones(1, len(experts)), nothing, nothing))


def check_tiers(residency: ResidentExperts) -> None:
    """Every slot is free or has one expert, and the rule knows the same ones."""
    pool = residency.held
    assert isinstance(pool, DevicePool)
    for slots, cache in ((pool.slots, residency.cache), (pool.host.slots, pool.host.cache)):
        taken = list(slots.slot_of.values())
        number = len(next(iter(slots.tensors.values())))
        assert sorted(taken + slots._free) == list(range(number))
        assert number == cache.capacity
        assert set(slots.slot_of) == {(a, b) for a, b in zip(*cache.resident_LE.nonzero(), strict=True)}


def check_experts(whole, model, layer: int, experts: list[int]) -> None:
    """Kernels find each of these experts where they are told."""
    own = list(model.moe_layers())[layer].experts
    assert own.num_experts == NUM_EXPERTS
    # No two are in one slot, those that left it included.
    told = [slot for slot in own.slots_E.tolist() if slot >= 0]
    assert len(set(told)) == len(told)
    for expert in experts:
        slot = int(own.slots_E[expert])
        assert torch.equal(own.gate_up_E2FD[slot], whole[layer].gate_up_E2FD[expert])
        assert torch.equal(own.down_EDF[slot], whole[layer].down_EDF[expert])


@settings(max_examples=60, deadline=None)
@given(TRACES, CAPACITY, CAPACITY, st.sampled_from(sorted(STREAMS)), st.booleans())
def test_a_visit_finds_its_experts_whatever_the_trace(
    model_dir, whole, steps, capacity, host, stream, warmed
) -> None:
    model, residency = pooled(model_dir, capacity, host, STREAMS[stream](), warmed=warmed)
    for slots in (residency.held.slots, residency.held.host.slots):
        # What lies in free slots must never be read.
        for part in (part for slot in slots._free for part in slots.parts(slot)):
            part.fill_(float("nan"))
    for step, experts in enumerate(steps):
        layer = step % NUM_LAYERS
        visit(residency, layer, experts)
        check_experts(whole, model, layer, experts)
        check_tiers(residency)
    stats, told = residency.stats, residency.as_json()
    assert stats.uses == stats.hits + stats.awaited + stats.misses == sum(map(len, steps))
    assert told["host"]["hits"] + told["host"]["misses"] == stats.misses + stats.prefetched
    if host == EVERY and warmed:
        assert told["host"]["misses"] == 0
    residency.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("capacity", "host"), [(8, None), (13, 8), (9, 14), (24, 24)])
@pytest.mark.parametrize("stream", STREAMS)
def test_answers_are_those_of_the_whole_model_to_the_bit(model_dir, stream, capacity, host, dtype) -> None:
    wanted_tokens, wanted_logits, _ = answers(moe_core.load(model_dir, dtype))
    model, residency = pooled(model_dir, capacity, host, STREAMS[stream](), dtype)
    tokens, logits, _ = answers(model, residency)
    assert tokens == wanted_tokens
    assert all(map(torch.equal, logits, wanted_logits))
    assert (residency.stats.misses > 0) == (capacity < EVERY)
    residency.close()


def test_layers_share_one_pool_and_hold_nothing_beside(model_dir) -> None:
    model, residency = pooled(model_dir, 9, None, ThreadCopyStream())
    own = [mlp.experts for mlp in model.moe_layers()]
    assert {one.gate_up_E2FD.data_ptr() for one in own} == {own[0].gate_up_E2FD.data_ptr()}
    assert own[0].gate_up_E2FD.shape[0] == own[0].down_EDF.shape[0] == 9
    spaces = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in own[0].parameters()}
    one_expert = 3 * MOE["moe_intermediate_size"] * model.spec.hidden_size * 4
    assert sum(spaces.values()) == 9 * one_expert
    residency.close()


def test_the_x_ray_sees_the_experts_too(model_dir) -> None:
    model, residency = pooled(model_dir, 8, 8, LateStream())
    engine = Engine(serve_spec(), model, residency=residency)
    assert trace(engine, PROMPTS[0], -1) == trace(
        Engine(serve_spec(), moe_core.load(model_dir)), PROMPTS[0], -1
    )
    residency.close()


@pytest.mark.parametrize("family", ["gpt_oss", "step3p5"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_experts_with_biases_and_clamps_lie_in_pools_too(family, symmetric, tmp_path) -> None:
    model = random_decoder(tiny_family(family).model_copy(update={"vocab_size": 128}), 1, STD)
    packing = {"bits": 4, "group_size": 32, "symmetric": symmetric}
    packed, _ = quantise(model, QuantiseSpec.parse({"kind": "quantise", "quantisation": packing}))
    moe_core.save(packed, tmp_path / "packed")
    capacity = 2 * model.spec.moe.num_experts - 1
    apart, residency = pooled(tmp_path / "packed", capacity, capacity, LateStream())
    tokens, logits, _ = answers(apart, residency)
    wanted_tokens, wanted_logits, _ = answers(packed)
    assert tokens == wanted_tokens
    assert all(map(torch.equal, logits, wanted_logits))
    residency.close()


def test_the_likeliest_begin_on_the_device_and_the_next_in_memory(model_dir) -> None:
    routing = serve_spec(domains=DOMAINS, general_experts=[0]).routing()
    uses = [[0] * NUM_EXPERTS for _ in range(NUM_LAYERS)]
    uses[1][3], uses[2][7] = 900, 800
    _, residency = pooled(model_dir, 8, 9, LateStream(), routing=routing, uses=uses)
    pool = residency.held
    assert set(pool.slots.slot_of) >= {(1, 3), (2, 7), (0, 5), (0, 6)}
    assert len(pool.slots.slot_of) == 8
    # None of them twice while others have no place at all.
    assert not set(pool.slots.slot_of) & set(pool.host.slots.slot_of)
    assert len(pool.host.slots.slot_of) == 9
    read = residency.as_json()
    assert (read["host"]["hits"], read["host"]["misses"]) == (0, 0)
    residency.close()


def test_the_hit_rate_is_the_rules_and_near_the_best(model_dir) -> None:
    visits = [(layer, experts) for layer, experts in skewed(200, size=2) if layer < NUM_LAYERS]
    _, residency = pooled(model_dir, 10, 10, ThreadCopyStream(), warmed=False)
    residency.prefetches = False
    fetched, fetch = [], residency.held.fetch

    def noted(keys):
        if keys:
            fetched.append((keys[0][0], tuple(expert for _, expert in keys)))
        fetch(keys)

    residency.held.fetch = noted
    for layer, experts in visits:
        visit(residency, layer, list(experts))
    told = residency.as_json()
    assert told["hit_rate"] == round(hit_rate(visits, NUM_LAYERS, NUM_EXPERTS, 10), 4)
    assert told["hit_rate"] >= 0.8 * optimal_hit_rate(visits, 10)
    host = told["host"]
    assert 0 < host["hits"] / (host["hits"] + host["misses"]) <= optimal_hit_rate(fetched, 10)
    residency.close()


def test_what_comes_is_awaited_and_the_host_goes_on(model_dir) -> None:
    """Fetching returns at once while the copy hangs; only who needs the expert waits."""
    gate = threading.Event()

    class Hanging(ThreadCopyStream):
        def _copy(self, pairs):
            gate.wait()
            super()._copy(pairs)

    model, residency = pooled(model_dir, 12, None, Hanging(), warmed=False)
    pool = residency.held
    residency.cache.admit([(0, 2)], 0, keep=[])
    pool.fetch([(0, 2)])
    assert pool.late([(0, 2), (0, 3)]) == 1
    threading.Timer(0.05, gate.set).start()
    visit(residency, 0, [2])
    assert gate.is_set()
    assert (residency.stats.awaited, residency.stats.misses) == (1, 0)
    check_experts([mlp.experts for mlp in moe_core.load(model_dir).moe_layers()], model, 0, [2])
    residency.close()


def test_what_was_fetched_in_vain_comes_before_what_takes_its_slot(model_dir, whole) -> None:
    model, residency = pooled(model_dir, 8, 9, LateStream(), warmed=False)
    pool, gate = residency.held, threading.Event()
    visit(residency, 0, [3])
    visit(residency, 1, [0])
    residency.held.drop([(0, 3)])
    read, weights = pool.host._weights.read_into, pool.host._weights

    def held_up(tensor, place):
        gate.wait()
        read(tensor, place)

    weights.read_into = held_up
    pool.fetch([(2, 6)])
    threading.Timer(0.05, gate.set).start()
    pool.drop([(2, 6)])
    # The same slot, from the host's memory at once.
    pool.fetch([(0, 3)])
    pool.wait(0, [(0, 3)])
    del weights.read_into
    residency.close()
    check_experts(whole, model, 0, [3])


@pytest.mark.parametrize("on_device", [True, False])
def test_after_an_expert_could_not_be_read_nothing_is_computed(model_dir, on_device) -> None:
    device = DeviceTier(ThreadCopyStream(), 8) if on_device else None
    _, residency = load_resident(model_dir, "float32", 8, RoutingSpec(), device=device, warmed=False)

    def broken(tensor, place):
        raise OSError("the disk is gone")

    weights = residency.held.host._weights if on_device else residency.held._weights
    weights.read_into = broken
    with pytest.raises(OSError, match="the disk is gone"):
        visit(residency, 0, [1])
    del weights.read_into
    # It counts as resident, and what lies there is no expert.
    with pytest.raises(EngineError, match="could not be fetched before"):
        visit(residency, 0, [1])
    residency.close()


def test_steps_are_not_recorded_where_experts_come_and_go(model_dir, monkeypatch) -> None:
    monkeypatch.setattr(runner, "records", lambda spec, device: True)
    model, residency = pooled(model_dir, 8, None, ThreadCopyStream())
    assert Engine(serve_spec(), model, residency=residency).runner.graphs is None
    assert Engine(serve_spec(), moe_core.load(model_dir)).runner.graphs is not None
    residency.close()


@pytest.mark.parametrize(("host", "device", "named"), [(7, 8, "resident_experts"), (8, 7, "device_experts")])
def test_fewer_than_one_layer_may_need_are_refused(model_dir, host, device, named) -> None:
    with pytest.raises(SpecError, match=rf"{named} \(7\) must hold the 8 experts") as refusal:
        pooled(model_dir, device, host, ThreadCopyStream())
    assert refusal.value.faults[0][0] == (named,)


class TestGpuStream:
    """What is asked of torch.cuda, by a torch.cuda that copies as late as it may and looks at the order."""

    @pytest.mark.parametrize(("capacity", "host"), [(8, None), (13, 8), (9, 14)])
    def test_answers_are_those_of_the_whole_model(self, model_dir, monkeypatch, capacity, host) -> None:
        wanted_tokens, wanted_logits, _ = answers(moe_core.load(model_dir))
        gpu = Gpu(monkeypatch)
        model, residency = pooled(model_dir, capacity, host, GpuCopyStream(torch.device("cpu")))
        tokens, logits, _ = answers(model, residency)
        assert tokens == wanted_tokens
        assert all(map(torch.equal, logits, wanted_logits))
        residency.close()
        # Two tensors an expert; nothing is left locked.
        fetched = capacity + residency.stats.misses + residency.stats.prefetched
        assert gpu.num_copies == 2 * fetched
        assert gpu.registered == {}

    def test_no_copy_overtakes_what_still_reads_its_slot(self, model_dir, whole, monkeypatch) -> None:
        gpu = Gpu(monkeypatch)
        model, residency = pooled(model_dir, 9, 10, GpuCopyStream(torch.device("cpu")))
        chance, seen = random.Random(4), Counter()
        for step in range(300):
            layer, experts = (
                step % NUM_LAYERS,
                sorted(chance.sample(range(NUM_EXPERTS), chance.randint(1, 4))),
            )
            visit(residency, layer, experts)
            check_experts(whole, model, layer, experts)
            for expert in experts:
                seen[expert] += 1
                for part in residency.held.slots.parts(residency.held.slots.slot_of[layer, expert]):
                    gpu.read(part)
        assert len(gpu.read_at) == 2 * 9
        assert gpu.num_copies > 500
        residency.close()

    def test_memory_that_cannot_be_locked_is_refused(self, model_dir, monkeypatch) -> None:
        gpu = Gpu(monkeypatch)
        gpu.refuses = 2
        for gpu.locks_before in (0, 1):
            with pytest.raises(EngineError, match=r"cannot be locked \(CUDA error 2\)"):
                pooled(model_dir, 8, None, GpuCopyStream(torch.device("cpu")))
            # Nothing stays locked of what was locked before.
            assert (gpu.locked_most, gpu.registered) == (gpu.locks_before, {})
