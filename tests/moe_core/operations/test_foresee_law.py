"""The law of forecasts: what is foretold is refused exactly where the operation refuses, and else is what it makes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from moe_core.errors import SpecError
from moe_core.model import Decoder
from moe_core.model.init import random_decoder
from moe_core.operations import preview_removal
from moe_core.operations.prompts import Prompts
from moe_core.spec import ModelSpec
from moe_core.spec.foresee import foreseen
from moe_core.spec.operations import OPERATION
from tests.moe_core.operations.acts import ACTS
from tests.moe_core.tiny import STD, tiny_llama

PROMPTS = Prompts.of(
    {
        "law": [[1, 5, 3, 9], [2, 4, 8], [6, 1, 7], [3, 3, 2, 5]],
        "code": [[20, 15, 13], [12, 24], [26, 11, 17], [13, 22]],
    }
)
SMALL = {
    "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 12,
    "vocab_size": 31,
}  # fmt: skip
KINDS = (
    "switch", "gshard_top2", "noisy_topk", "top_p", "sparsemax", "sinkhorn", "quantile", "expert_choice", "base", "hash",
    "soft", "hierarchical",
)  # fmt: skip
plain_gates = st.builds(
    lambda order, bias: {"kind": "softmax_topk", "order": order, "selection_bias": bias},
    st.sampled_from(["before", "after"]),
    st.booleans(),
)
grouped_gates = st.builds(
    lambda groups, chosen, scores, worth: {
        "kind": "sigmoid_groups", "num_groups": groups, "topk_group": min(groups, chosen), "scores": scores,
        "group_score": worth, "routed_scaling_factor": 1.5,
    },
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2]),
    st.sampled_from(["sigmoid", "softmax", "sqrtsoftplus"]),
    st.sampled_from(["two_best", "best"]),
)  # fmt: skip
gates = st.one_of(
    plain_gates, plain_gates, grouped_gates, grouped_gates, st.builds(dict, kind=st.sampled_from(KINDS))
)


@st.composite
def roots(draw: st.DrawFn, num_experts: int) -> tuple[int, ...]:
    """For each expert itself, or one of the roots before it: few of them, so that there are crowds."""
    found: list[int] = []
    for expert in range(num_experts):
        found.append(draw(st.sampled_from([expert, *sorted(set(found))[:2]])))
    return tuple(found)


@st.composite
def layouts(draw: st.DrawFn) -> ModelSpec:
    """A tiny model, most of them mixtures: any gate, twins, limits, windows, bounds, packed and unlike experts among them."""
    dense = tiny_llama(**SMALL)
    if draw(st.integers(0, 11)) == 0:
        return dense
    num_experts = draw(st.sampled_from([1, 2, 3, 4, 4, 6, 6, 8, 8, 8]))
    moe: dict[str, Any] = {
        "moe_layers": draw(st.sampled_from([(0,), (0, 2)])),
        "num_experts": num_experts,
        "top_k": draw(st.integers(1, min(4, num_experts))),
        "moe_intermediate_size": draw(st.sampled_from([6, 8])),
        "norm_topk_prob": draw(st.booleans()),
        "gate": draw(gates),
        "expert_bias": draw(st.integers(0, 7)) == 0,
    }
    if draw(st.booleans()):
        moe["twins"] = {"roots": draw(roots(num_experts)), "hold": draw(st.sampled_from([None, 0.0, 1.0]))}
    rare = draw(st.integers(0, 11))
    if rare == 0:
        moe["capacity"] = {"train_factor": 1.0, "eval_factor": 2.0, "overflow": "drop"}
    elif rare == 1:
        moe["quantisation"] = {"bits": 8, "group_size": 32}
    elif rare == 2:
        moe["expert_kinds"] = [{"kind": "swiglu", "width": moe["moe_intermediate_size"]}] * num_experts
    trunk = dense.model_dump()
    if draw(st.integers(0, 3)) == 0:
        layer = draw(st.integers(0, dense.num_hidden_layers - 1))
        trunk["attention"] |= {"sliding_window": 3, "sliding_layers": (layer,)}
        trunk["dense_clamps"] = tuple(0.5 * (at == layer) for at in range(dense.num_hidden_layers))
    try:
        return ModelSpec.parse({**trunk, "family": "turnout_moe", "moe": moe})
    except SpecError:
        assume(False)
        raise


places = st.sampled_from([0, 0, 1, 1, 2, 2, 3, 8])
chosen = st.one_of(places, places, st.tuples(places), st.tuples(places, places))
few = st.sampled_from([1, 2, 3, 4])
learning = {"steps": st.just(1)}
fields: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "upcycle": {
        "layout": st.fixed_dictionaries(
            {
                "moe_layers": st.just((0, 2)),
                "num_experts": st.sampled_from([2, 4]),
                "top_k": few,
                "gate": gates,
            }
        ),
        "granularity": st.sampled_from([1, 2, 5]),
    },
    "compose": {
        "domains": st.just(("law", "code")),
        "top_k": st.none() | few,
        "moe_layers": st.none() | st.just((0,)),
    },
    "grow": {
        "num_experts": st.sampled_from([2, 4, 6, 8, 12, 16, 32]),
        "method": st.sampled_from(["twin", "double_k", "split"]),
    },
    "add": {"source": places, "per_group": st.booleans()},
    "remove": {"expert": st.none() | chosen, "per_group": st.booleans()},
    "merge": {"first": chosen, "second": chosen, "per_group": st.booleans()},
    "release_twins": {"hold": st.sampled_from([None, 0.0, 2.0])},
    "quantise": {
        "attention": st.none() | st.just({"bits": 8, "group_size": 32}),
        "head": st.none() | st.just({"bits": 8, "group_size": 32}),
    },
    "dequantise": {},
    "specialise_clone": {"source": places, "domain": st.just("law"), **learning},
    "wake_expert": {"expert": st.none() | chosen, **learning},
    "distil": {
        "num_experts": few,
        "top_k": st.none() | few,
        "moe_intermediate_size": st.sampled_from([None, 4, 16]),
        "num_hidden_layers": st.sampled_from([None, 1, 2, 4]),
        **learning,
    },
}
# What is refused and done is found by the rules on single experts first.
OFTEN = ("remove", "remove", "merge", "merge", "add", "grow", "distil")
kinds = st.sampled_from((*OFTEN, *fields))
operations = kinds.flatmap(lambda kind: st.fixed_dictionaries({"kind": st.just(kind), **fields[kind]}))


CLAMPS = ("expert_clamps", "dense_clamps")


def outline(spec: ModelSpec, operation: Any) -> dict[str, Any]:
    """What can be foretold: all but the family, and what hangs on the weights."""
    plain = spec.model_dump(exclude={"family"})
    if operation.kind == "distil" and operation.num_hidden_layers is not None:
        plain["moe"]["moe_layers"] = len(plain["moe"]["moe_layers"])
        # Which layers stay, and with them windows and bounds, hangs on the weights.
        for part, names in ((plain["attention"], ("sliding_layers", "sliding_window")), (plain, CLAMPS)):
            for name in names:
                del part[name]
    if operation.kind == "remove" and operation.expert is None:
        del plain["moe"]["twins"]
    return plain


def twins_of(**moe: Any) -> ModelSpec:
    base = {"moe_layers": (0, 2), "num_experts": 4, "top_k": 2, "moe_intermediate_size": 8, **moe}
    return ModelSpec.parse({**tiny_llama(**SMALL).model_dump(), "family": "turnout_moe", "moe": base})


PAIRS = {"roots": (0, 1, 0, 1), "hold": 0.0}


@settings(max_examples=150, deadline=None)
@example(twins_of(twins={"roots": (0, 0, 2, 3), "hold": 0.0}, top_k=3), {"kind": "remove", "expert": 3})
@example(twins_of(twins={"roots": (0, 0, 2, 3), "hold": 0.0}, top_k=3), {"kind": "remove"})
@example(twins_of(twins=PAIRS), {"kind": "remove", "expert": (0, 1)})
@example(twins_of(twins=PAIRS), {"kind": "remove"})
@example(twins_of(twins=PAIRS), {"kind": "merge", "first": (0, 1), "second": (2, 3)})
@example(twins_of(twins={"roots": (0, 0, 0, 3)}, top_k=1), {"kind": "remove"})
@example(twins_of(twins={"roots": (0,) * 4}, top_k=1), {"kind": "remove", "expert": 1})
@example(twins_of(twins={"roots": (0,) * 4}, top_k=1), {"kind": "remove"})
@example(twins_of(twins={"roots": (0,) * 4}, top_k=1), {"kind": "merge", "first": 0, "second": 3})
@given(layouts(), operations)
def test_a_forecast_refuses_where_the_operation_does_and_else_foretells_what_it_makes(
    spec: ModelSpec, plain: dict[str, Any]
) -> None:
    try:
        operation = OPERATION.parse(plain)
    except SpecError:
        assume(False)
        raise
    model: Decoder = random_decoder(spec, 3, STD)
    try:
        told = foreseen(spec, operation)
    except SpecError as foretold:
        with pytest.raises(SpecError) as refused:
            ACTS[operation.kind](model, operation, PROMPTS)
        assert str(refused.value) == str(foretold)
        return
    made = ACTS[operation.kind](model, operation, PROMPTS)[0].spec
    assert outline(made, operation) == outline(told, operation)
    if operation.kind == "remove":
        assert preview_removal(model, operation, PROMPTS)["experts"]
