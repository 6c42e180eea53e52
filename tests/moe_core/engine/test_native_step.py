"""A decoding step in one native call answers as the decoder in torch does, and leaves the same counts."""

from __future__ import annotations

import pytest
import torch

from moe_core.engine.decode_graph import records
from moe_core.engine.engine import Engine
from moe_core.engine.native_step import MAX_ROWS
from moe_core.kernels.cpu.native import library
from moe_core.model.init import random_decoder
from moe_core.spec import ModelSpec
from tests.moe_core.engine.conftest import Run, serve_spec
from tests.moe_core.engine.native_models import GATES, OWN_WINDOW, SPECS, WINDOW, build, engine_of
from tests.moe_core.tiny import tiny_turnout

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")
PROMPTS = [[5], list(range(3, 40)), [9] * 16, list(range(60, 77))]


# Bits of the experts, of attention's maps and of the head; None: bfloat16.
BITS = {
    "16": None,
    "8": (8, None, None),
    "4": (4, None, None),
    "8 everywhere": (8, 8, 8),
    "4, head in 8": (4, 4, 8),
}


def steps(engine: Engine, *, by_torch: bool, domain: int = -1) -> list[torch.Tensor]:
    """Logits of the decoding steps of some prompts, with the same tokens fed whichever path computes them."""
    native, found = engine.runner.native, []
    assert native is not None
    run = Run(engine)
    sequences = [run.submit(list(ids), 6, ignore_eos=True, domain=domain) for ids in PROMPTS]
    while any(sequence.num_output_tokens < 1 for sequence in sequences):
        run.step()
    for place in range(4):
        for number, sequence in enumerate(sequences):
            sequence.token_ids[-1] = 20 + 7 * number + place
        chunks = engine._plan()
        assert native.takes(chunks)
        engine.runner.native = None if by_torch else native
        found.append(engine.runner.run(chunks).clone())
        engine.runner.native = native
        engine.scheduler.commit(chunks)
        for sequence in sequences:
            sequence.token_ids.append(0)
    for sequence in sequences:
        engine.cancel(sequence.id)
    run.step()
    return found


def assert_alike(native: list[torch.Tensor], by_torch: list[torch.Tensor]) -> None:
    """Equal up to the bfloat16 roundings along the way; a turned-about routing would show in a whole row."""
    for found, wanted in zip(native, by_torch, strict=True):
        assert found.isfinite().all()
        assert found.shape == wanted.shape
        error = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        assert float(error.max()) < 0.05, error
        assert torch.equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize("rows", [False, True], ids=["panels", "rows"])
@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
@pytest.mark.parametrize("name", SPECS)
def test_logits_and_counts_are_those_of_torch(
    monkeypatch, name: str, bits: tuple[int | None, ...] | None, *, rows: bool
) -> None:
    spec = SPECS[name]
    monkeypatch.setattr("moe_core.kernels.cpu.attach.panels_pay", lambda native: not rows)
    if bits is not None and spec.moe is None:
        pytest.skip("a dense model has no experts to pack")
    engine = engine_of(build(spec, bits), monkeypatch)
    if rows and not rows_know(engine):
        assert engine.runner.native is None
        return
    by_torch = steps(engine, by_torch=True)
    counts = None if engine.runner.counts is None else engine.runner.counts.counts_PNLE.clone()
    engine.forget_history()
    assert_alike(steps(engine, by_torch=False), by_torch)
    if counts is not None and engine.runner.counts is not None:
        assert torch.equal(engine.runner.counts.counts_PNLE, counts)
        assert int(counts[1].sum()) == 16 * len(spec.moe.moe_layers) * spec.moe.top_k


@pytest.mark.parametrize("bits", [None, (4, 4, 8)], ids=str)
@pytest.mark.parametrize("name", GATES)
def test_every_gate_answers_and_is_counted_as_in_torch(monkeypatch, name: str, bits) -> None:
    engine = engine_of(build(GATES[name], bits), monkeypatch)
    by_torch = steps(engine, by_torch=True)
    counts = engine.runner.counts.counts_PNLE.clone()
    engine.forget_history()
    assert_alike(steps(engine, by_torch=False), by_torch)
    assert torch.equal(engine.runner.counts.counts_PNLE, counts)
    most = 16 * len(GATES[name].moe.moe_layers) * GATES[name].moe.top_k
    # Places that stay empty are counted for nobody.
    assert (int(counts[1].sum()) < most) == GATES[name].moe.gate.leaves_places_empty


@pytest.mark.parametrize("wrong", [-1.0, 8.0])
def test_a_table_that_names_no_expert_is_left_to_torch(monkeypatch, wrong: float) -> None:
    model = build(GATES["hash"])
    next(iter(model.moe_layers())).router.tensors["table"].data[5, 1] = wrong
    assert engine_of(model, monkeypatch).runner.native is None


def rows_know(engine: Engine) -> bool:
    """Whether weights that lie as rows have kernels: silu without biases, no latents; packed experts lie in panels anyway."""
    modules = [module for module in engine.runner.model.modules() if hasattr(module, "gating")]
    plain = [m.gating.kind == "silu" and getattr(m, "gate_up_bias_E2F", None) is None for m in modules]
    silu = all(one or hasattr(module, "panels") for one, module in zip(plain, modules, strict=True))
    return silu and engine.runner.model.spec.attention.mla is None


@pytest.mark.parametrize("name", ["mixtral", "sigmoid of the best groups", "softmax whose choice is biased"])
def test_a_domains_prior_turns_its_own_sequences_only(monkeypatch, name: str) -> None:
    domains = [
        {"code": code, "name_en": code, "name_zh": code, "experts": [expert]}
        for code, expert in (("law", 3), ("art", 0))
    ]
    engine = engine_of(build(SPECS[name]), monkeypatch, domains=domains, prior_strength=30.0)
    for domain, expert in ((0, 3), (1, 0), (-1, None)):
        engine.forget_history()
        native = steps(engine, by_torch=False, domain=domain)
        counts = engine.runner.counts.counts_PNLE.clone()
        engine.forget_history()
        assert_alike(native, steps(engine, by_torch=True, domain=domain))
        assert torch.equal(engine.runner.counts.counts_PNLE, counts)
        # A sigmoid of a large logit can rise no further.
        if expert is not None and "sigmoid" not in name:
            # Every token of every expert layer, in decoding.
            assert counts[1, domain + 1, :, expert].unique().tolist() == [16]


@pytest.mark.parametrize(
    "name", ["mixtral", "sigmoid of the best groups", "softmax of the best groups, as they are"]
)
def test_a_mask_is_kept_also_where_it_empties_groups(monkeypatch, name: str) -> None:
    experts = [0, 2] if name == "mixtral" else [0, 2, 5]
    domain = {"code": "law", "name_en": "law", "name_zh": "law", "experts": experts}
    engine = engine_of(build(SPECS[name]), monkeypatch, domains=[domain], prior_mode="mask")
    engine.forget_history()
    native = steps(engine, by_torch=False, domain=0)
    counts = engine.runner.counts.counts_PNLE.clone()
    engine.forget_history()
    assert_alike(native, steps(engine, by_torch=True, domain=0))
    assert torch.equal(engine.runner.counts.counts_PNLE, counts)
    assert set(counts[1, 1].sum(0).nonzero().flatten().tolist()) == set(experts)


@pytest.mark.parametrize(
    "name", ["mixtral", "sigmoid of the best groups", "softmax whose choice is biased", "latents"]
)
def test_a_floor_is_kept_as_in_torch_and_by_its_own_sequences_only(monkeypatch, name: str) -> None:
    domains = [
        {"code": code, "name_en": code, "name_zh": code, "experts": experts}
        for code, experts in (("law", [3]), ("art", [0, 1]))
    ]
    engine = engine_of(build(SPECS[name]), monkeypatch, domains=domains, prior_mode="floor", prior_floor=0.9)
    free = engine_of(build(SPECS[name]), monkeypatch)
    for domain in (0, 1, -1):
        engine.forget_history()
        native = steps(engine, by_torch=False, domain=domain)
        counts = engine.runner.counts.counts_PNLE.clone()
        engine.forget_history()
        assert_alike(native, steps(engine, by_torch=True, domain=domain))
        assert torch.equal(engine.runner.counts.counts_PNLE, counts)
        if domain < 0:
            free.forget_history()
            plain = steps(free, by_torch=False)
            assert all(torch.equal(one, other) for one, other in zip(native, plain, strict=True))
        elif domain == 0:
            # Nine tenths of the probability make the one expert of the domain the best, where no bias turns the choice.
            assert int(counts[1, 1, :, 3].min()) >= 15


@pytest.mark.parametrize("name", ["mixtral", "sinks, windows, biases, clamps", "latents"])
def test_a_sequence_does_not_depend_on_its_company(monkeypatch, name: str) -> None:
    engine = engine_of(build(SPECS[name]), monkeypatch)
    assert engine.runner.native is not None
    run = Run(engine)
    together = [run.submit(list(ids), 12, ignore_eos=True) for ids in PROMPTS]
    run.until_done()
    for ids, sequence in zip(PROMPTS, together, strict=True):
        engine.forget_history()
        alone = run.submit(list(ids), 12, ignore_eos=True)
        run.until_done()
        assert run.tokens[alone.id] == run.tokens[sequence.id]


@pytest.mark.parametrize("bits", [None, (8, 8, 8), (4, 4, 8)], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_prompts_in_stretches_and_beside_decodes_are_those_of_torch(monkeypatch, name: str, bits) -> None:
    """Steps that mix single tokens, first stretches, later stretches that look back, and guesses."""
    # Where torch has tiles the decoder attends to prompts by torch, which rounds shares elsewhere and turns near ties.
    monkeypatch.setattr("moe_core.engine.attention.has_tiles", lambda: False)
    monkeypatch.setattr("moe_core.kernels.cpu.attach.panels_pay", lambda native: True)
    spec = SPECS[name]
    if bits is not None and spec.moe is None:
        pytest.skip("a dense model has no experts to pack")
    changes = {"max_batch_tokens": 40, "max_chunk_tokens": 23}
    engine = engine_of(build(spec, bits), monkeypatch, **changes)
    assert engine.runner.native is not None
    compared = mixed = 0
    run = Run(engine)
    lengths = (70, 1, 39, 24, 5)
    prompts = [[(7 * place + 3 * number) % 90 + 3 for place in range(n)] for number, n in enumerate(lengths)]
    for ids in prompts:
        run.submit(ids, 4, ignore_eos=True)
    while engine.has_work:
        chunks = engine._plan()
        if not chunks:
            break
        assert engine.runner.native.takes(chunks)
        native, engine.runner.native = engine.runner.native, None
        by_torch = engine.runner.run(chunks, counted=False).clone()
        wanted = None if engine.runner.counts is None else engine.runner.counts.ids_LTK.clone()
        engine.runner.native = native
        found = engine.runner.run(chunks)
        if len(found):
            assert_alike([found], [by_torch])
            compared += len(found)
        if wanted is not None:
            used = sum(chunk.num_tokens for chunk in chunks)
            # A tie that rounding decides may turn a choice; most stay.
            assert (engine.runner.counts.ids_LTK[:, :used] == wanted[:, :used]).float().mean() > 0.95
        mixed += len({chunk.num_tokens > 1 for chunk in chunks}) > 1
        engine.scheduler.commit(chunks)
        for chunk in chunks:
            if chunk.end == len(chunk.sequence.token_ids):
                chunk.sequence.token_ids.append(11 + chunk.end % 50)
        if compared > 14:
            break
    assert compared > 14
    assert mixed > 0


def test_weights_in_rows_take_decoding_steps_only(monkeypatch) -> None:
    monkeypatch.setattr("moe_core.kernels.cpu.attach.panels_pay", lambda native: False)
    engine = engine_of(build(SPECS["mixtral"]), monkeypatch)
    native, run = engine.runner.native, Run(engine)
    run.submit([1, 2, 3], 4)
    assert not native.takes(engine._plan())
    run.step()
    decode = engine._plan()
    assert native.takes(decode)
    assert not native.takes(decode * (MAX_ROWS + 1))


@pytest.mark.parametrize(
    "moe",
    [
        {"capacity": {"eval_factor": 2.0}},
        {"expert_kinds": [{"kind": "swiglu", "width": 32}, *[{"kind": "zero"}] * 4]},
    ],
    ids=str,
)
def test_a_mixture_that_it_does_not_know_is_enough(monkeypatch, moe: dict[str, object]) -> None:
    fields = tiny_turnout().model_dump()
    # A capacity of training says nothing when serving.
    for changes, known in (({}, True), ({"capacity": {}}, True), (moe, False)):
        spec = ModelSpec.parse({**fields, "moe": {**fields["moe"], **changes}})
        model = random_decoder(spec, seed=1, std=0.2, dtype=torch.bfloat16).eval()
        assert (engine_of(model, monkeypatch).runner.native is not None) == known


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"zero_centred_norms": True},
        {"expert_clamps": [0.5, 0.0, 0.0]},
        {"attention": {"head_gate": True}},
        {"attention": WINDOW},
        {"attention": {**WINDOW, "sliding": OWN_WINDOW}},
    ],
    ids=str,
)
def test_recordings_on_a_gpu_know_windows_and_no_more(change: dict[str, object]) -> None:
    spec = ModelSpec.parse({**tiny_turnout().model_dump(), **change})
    assert records(spec, torch.device("cuda")) == (change in ({}, {"attention": WINDOW}))


def test_without_attached_kernels_there_is_no_native_step() -> None:
    model = build(SPECS["mixtral"])
    assert Engine(serve_spec(), model).runner.native is None


def test_nan_reaches_only_its_own_sequence(monkeypatch) -> None:
    model = build(SPECS["mixtral"])
    model.embed_tokens.weight.data[50] = float("nan")
    engine = engine_of(model, monkeypatch)
    run = Run(engine)
    sequences = [run.submit([7, 8, number], 5, ignore_eos=True) for number in (3, 4)]
    run.step()
    sequences[0].token_ids[-1] = 50
    logits = engine.runner.run(engine._plan())
    # The tied head makes logit 50 NaN for everybody; the rest tells the rows apart.
    assert logits[0].isnan().all()
    assert logits[1, :50].isfinite().all()


def test_a_step_tells_the_likeliest_token_of_its_own_logits_and_of_no_others(monkeypatch) -> None:
    model = build(SPECS["mixtral"])
    engine = engine_of(model, monkeypatch)
    run, runner = Run(engine), engine.runner
    for number in (3, 4, 5):
        run.submit([7, 8, number], 6, ignore_eos=True)
    for num_rows in (3, 3, 2):
        if num_rows < len(engine._sequences):
            engine.cancel(next(iter(engine._sequences)))
        run.step()
        chunks = engine._plan()
        logits = runner.run(chunks, counted=False)
        assert list(runner.likeliest(logits)) == logits.argmax(-1).tolist()
        assert len(logits) == num_rows
        assert runner.likeliest(logits.clone()) is None
    # Rows computed one by one are joined, and the last one's answer is not that of all.
    assert runner.likeliest(runner.run(chunks, counted=False, one_by_one=True)) is None
    native, runner.native = runner.native, None
    assert runner.likeliest(logits) is None
    runner.native = native


def test_logits_are_written_where_those_of_the_step_before_were(monkeypatch) -> None:
    engine = engine_of(build(SPECS["mixtral"]), monkeypatch)
    run = Run(engine)
    run.submit([7, 8, 3], 6, ignore_eos=True)
    run.step()
    first = engine.runner.run(engine._plan(), counted=False)
    assert engine.runner.run(engine._plan(), counted=False) is first
