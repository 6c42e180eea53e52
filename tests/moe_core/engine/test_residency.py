"""With experts on disk a model says the same to the bit, and its memory is really given back."""

from __future__ import annotations

import mmap

import pytest
import torch

import moe_core
from moe_core.engine.engine import Engine
from moe_core.engine.expert_places import give_back, joined
from moe_core.engine.residency import load_resident
from moe_core.engine.trace import trace
from moe_core.errors import SpecError
from moe_core.model.init import random_decoder
from moe_core.operations import quantise
from moe_core.spec import ModelSpec, RoutingSpec
from moe_core.spec.operations import QuantiseSpec
from tests.moe_core.engine.conftest import Run, serve_spec
from tests.moe_core.engine.http_engine import running_engine
from tests.moe_core.engine.model_dirs import tiny_model, write_model_dir
from tests.moe_core.tiny import STD, tiny_family, tiny_turnout

# Experts of 48 KiB a matrix, so that whole pages lie inside each.
WIDE = {
    "family": "turnout_moe",
    "hidden_size": 64,
    "moe": {"moe_layers": [0, 1, 2], "num_experts": 8, "top_k": 2, "moe_intermediate_size": 96},
}
DOMAINS = [{"code": "a", "name_en": "A", "name_zh": "甲", "experts": [5, 6]}]
PROMPTS = [list(b"the first prompt"), list(b"another"), list(b"a third one, which is a little longer")]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "wide"
    write_model_dir(path, tiny_model(5, **WIDE))
    return path


def answers(model, residency=None) -> tuple[list[list[int]], list[torch.Tensor], Run]:
    engine = Engine(serve_spec(max_sequences=3), model, residency=residency)
    logits, compute = [], engine.runner.run

    def kept(chunks, **options):
        logits.append(compute(chunks, **options).clone())
        return logits[-1]

    engine.runner.run = kept
    run = Run(engine)
    sequences = [run.submit(ids, 25) for ids in PROMPTS]
    run.until_done()
    return [run.tokens[one.id] for one in sequences], logits, run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("capacity", [8, 13, 24])
def test_answers_are_those_of_the_whole_model_to_the_bit(model_dir, capacity, dtype) -> None:
    """Computed by the same operations: in 16 bits a whole model that is served takes its steps natively instead."""
    wanted_tokens, wanted_logits, _ = answers(moe_core.load(model_dir, dtype))
    model, residency = load_resident(model_dir, dtype, capacity, RoutingSpec())
    tokens, logits, _ = answers(model, residency)
    assert tokens == wanted_tokens
    assert all(map(torch.equal, logits, wanted_logits))
    stats = residency.stats
    assert stats.uses == stats.hits + stats.awaited + stats.misses
    assert (stats.misses > 0) == (capacity < 24)
    residency.close()


def test_only_resident_experts_take_memory(model_dir) -> None:
    model, residency = load_resident(model_dir, "float32", 9, RoutingSpec())
    answers(model, residency)
    for future in residency.held._reading.values():
        future.result()
    whole = moe_core.load(model_dir)
    kept = 0
    for index, (mine, theirs) in enumerate(zip(model.moe_layers(), whole.moe_layers(), strict=True)):
        for expert in range(8):
            place, wanted = mine.experts.gate_up_E2FD.data[expert], theirs.experts.gate_up_E2FD[expert]
            if residency.cache.resident_LE[index, expert]:
                assert torch.equal(place, wanted)
                kept += 1
                continue
            start = -place.data_ptr() % mmap.PAGESIZE // 4
            pages = (place.numel() - start) * 4 // mmap.PAGESIZE
            assert pages >= 10
            assert not place.flatten()[start : start + pages * mmap.PAGESIZE // 4].any()
    assert kept == 9
    residency.close()


def test_the_experts_of_the_domains_are_read_before_the_first_request(model_dir) -> None:
    routing = serve_spec(domains=DOMAINS, general_experts=[0]).routing()
    _, residency = load_resident(model_dir, "float32", 9, routing)
    assert residency.cache.resident_LE.tolist() == [[n in (0, 5, 6) for n in range(8)]] * 3
    assert residency.held.bytes_read > 0
    residency.close()


def test_the_x_ray_sees_the_experts_too(model_dir) -> None:
    model, residency = load_resident(model_dir, "float32", 8, RoutingSpec())
    engine, whole = (
        Engine(serve_spec(), model, residency=residency),
        Engine(serve_spec(), moe_core.load(model_dir)),
    )
    assert trace(engine, PROMPTS[0], -1) == trace(whole, PROMPTS[0], -1)
    residency.close()


async def test_an_engine_serves_with_a_part_of_its_experts(model_dir, tmp_path) -> None:
    async with running_engine(model_dir, tmp_path, resident_experts=10) as client:
        lines = await client.generate(prompt="hello", max_tokens=6)
        assert lines[-1]["usage"]["completion_tokens"] == 6
        told = (await client.get("/stats"))["residency"]
    assert (told["capacity"], told["experts"]) == (10, 24)
    assert told["uses"] >= told["hits"] > 0


def test_what_cannot_be_kept_apart_is_refused(model_dir, tmp_path) -> None:
    with pytest.raises(SpecError, match="resident_experts .7. must hold the 8 experts"):
        load_resident(model_dir, "float32", 7, RoutingSpec())
    dense = tiny_model(2, family="llama", moe=None)
    write_model_dir(tmp_path / "dense", dense)
    with pytest.raises(SpecError, match="the model has no experts"):
        load_resident(tmp_path / "dense", "float32", 7, RoutingSpec())
    plain = tiny_turnout().model_dump()
    kinds = [{"kind": "swiglu", "width": 32}, *[{"kind": "zero"}] * (plain["moe"]["num_experts"] - 1)]
    mixed = ModelSpec.parse({**plain, "moe": {**plain["moe"], "expert_kinds": kinds}})
    moe_core.save(random_decoder(mixed, 1, STD), tmp_path / "mixed")
    with pytest.raises(SpecError, match="different kinds and widths"):
        load_resident(tmp_path / "mixed", "float32", 64, RoutingSpec())


@pytest.mark.parametrize("family", ["gpt_oss", "step3p5"])
def test_experts_in_one_tensor_are_refused_and_quantised_they_are_apart(family: str, tmp_path) -> None:
    model = random_decoder(tiny_family(family).model_copy(update={"vocab_size": 128}), 1, STD)
    moe_core.save(model, tmp_path / "whole")
    capacity = 2 * model.spec.moe.num_experts - 1
    with pytest.raises(SpecError, match="lie in tensors of their own; quantise the model"):
        load_resident(tmp_path / "whole", "float32", capacity, RoutingSpec())
    packing = {"kind": "quantise", "quantisation": {"bits": 8, "group_size": 32}}
    packed, _ = quantise(model, QuantiseSpec.parse(packing))
    moe_core.save(packed, tmp_path / "apart")
    apart, residency = load_resident(tmp_path / "apart", "float32", capacity, RoutingSpec())
    assert answers(apart, residency)[0] == answers(packed)[0]
    assert residency.stats.uses > 0
    residency.close()


def test_pages_are_given_back_without_touching_the_neighbours() -> None:
    values = torch.ones(6, 5000)
    [(start, end)] = joined([values[2, 2500:], values[2, :2500]])
    assert (start, end) == (values[2].data_ptr(), values[3].data_ptr())
    give_back(start, end)
    assert values[1].all()
    assert values[3].all()
    assert not values[2, 1024:3072].any()


def resident_keys(model_dir, capacity: int, routing: RoutingSpec, uses) -> set[tuple[int, int]]:
    _, residency = load_resident(model_dir, "float32", capacity, routing, uses=uses)
    residency.close()
    layers, experts = residency.cache.resident_LE.nonzero()
    return set(zip(layers.tolist(), experts.tolist(), strict=True))


def test_what_was_used_most_is_read_first_layer_by_layer(model_dir) -> None:
    uses = [[0] * 8 for _ in range(3)]
    uses[0][3], uses[0][4], uses[1][0], uses[2][7] = 900, 800, 10_000, 5_000
    routing = RoutingSpec.parse({"domains": DOMAINS})
    assert resident_keys(model_dir, 8, routing, uses) > {(0, 3), (0, 4), (1, 0), (2, 7)}
    # Few uses are doubted, and the map's word counts.
    few = [[one // 100 for one in row] for row in uses]
    assert (0, 5) in resident_keys(model_dir, 8, routing, [[int(e == 3) for e in range(8)], *few[1:]])
    mapped = resident_keys(model_dir, 8, routing, ())
    assert mapped >= {(layer, expert) for layer in range(3) for expert in (5, 6)}
    assert resident_keys(model_dir, 8, routing, [[0] * 8] * 3) == mapped


@pytest.mark.parametrize("uses", [[[1] * 8] * 2, [[1] * 7] * 3, [[1] * 12] * 2])
def test_uses_of_other_experts_are_refused(model_dir, uses) -> None:
    with pytest.raises(SpecError, match="expert_uses must be of 3 layers of 8 experts"):
        load_resident(model_dir, "float32", 8, RoutingSpec(), uses=uses)
