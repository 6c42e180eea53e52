"""transformers' own models on our kernels: logits, gradients and text stay what they were, and swapped experts show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_core.errors import MissingLibrary
from moe_core.kernels import dispatch

transformers = pytest.importorskip("transformers")

from moe_core.integrations import transformers as plugin  # noqa: E402
from tests.moe_core.model.hf_families import CASES, reference  # noqa: E402

REPO = Path(__file__).parents[3]
IDS = torch.randint(0, 97, (2, 17), generator=torch.Generator().manual_seed(3))
TOLERANCE = 1e-6
FAMILIES = [case for case in CASES if not case.startswith("llama")]
# What stands for gate, up and down in each module.
MAPS = ("gate_up_proj", "down_proj")


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    assert plugin.register() == "turnout"
    assert plugin.register() == "turnout"


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return reference(request.param)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def experts_of(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "has_post_expert_norm")]


@torch.no_grad()
def test_logits_are_equal_and_a_swapped_expert_shows(model: Any) -> None:
    before = model(IDS).logits
    model.set_experts_implementation("turnout")
    assert relative(model(IDS).logits, before) <= TOLERANCE
    for experts in experts_of(model):
        experts.down_proj[[0, 1]] = experts.down_proj[[1, 0]]
        assert relative(model(IDS).logits, before) > 1000 * TOLERANCE
        experts.down_proj[[0, 1]] = experts.down_proj[[1, 0]]


def test_every_gradient_is_equal(model: Any) -> None:
    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        logits = model(IDS).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    theirs = gradients()
    model.set_experts_implementation("turnout")
    ours = gradients()
    assert ours.keys() == theirs.keys()
    assert any("experts" in name for name in ours)
    assert any(name.endswith(("gate.weight", "router.weight")) for name in ours)
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-4, atol=1e-6), name


def test_greedy_text_is_the_same(model: Any) -> None:
    def text() -> list[int]:
        out = model.generate(IDS[:1, :9], max_new_tokens=64, do_sample=False, pad_token_id=0)
        return out[0].tolist()

    before = text()
    model.set_experts_implementation("turnout")
    assert text() == before


def test_a_directory_is_loaded_for_our_kernels_by_name(tmp_path: Any) -> None:
    theirs = reference("olmoe")
    theirs.save_pretrained(tmp_path)
    ours = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager", experts_implementation="turnout"
    )
    with torch.no_grad():
        assert relative(ours(IDS).logits, theirs(IDS).logits) <= TOLERANCE


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "deepseek_v3"])
def test_swiglu_families_run_on_the_kernel_of_the_dispatcher(family: str) -> None:
    calls: list[int] = []

    def counting(*tensors: Tensor) -> Tensor:
        calls.append(tensors[0].shape[0])
        return torch_kernel.call(*tensors)

    torch_kernel = next(kernel for kernel in dispatch._KERNELS if kernel.name == "torch")
    known = list(dispatch._KERNELS)
    model = reference(family)
    model.set_experts_implementation("turnout")
    dispatch.register(dispatch.RegisteredKernel("counting", counting, lambda *tensors: True))
    try:
        model(IDS)
    finally:
        dispatch._KERNELS[:] = known
    assert calls == [IDS.numel()] * len(experts_of(model))


def _random_module(module: Any) -> Any:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3)
    return module


def _nemotron() -> Any:
    """Experts without a gate: relu² between two maps."""
    from transformers.models.nemotron_h import modeling_nemotron_h as code

    config = transformers.NemotronHConfig(hidden_size=16, moe_intermediate_size=12, n_routed_experts=4)
    return _random_module(code.NemotronHExperts(config))


def _aria() -> Any:
    """Transposed maps."""
    from transformers.models.aria import modeling_aria as code

    config = transformers.AriaTextConfig(
        hidden_size=16, intermediate_size=12, moe_num_experts=4, num_attention_heads=2, num_key_value_heads=2
    )
    return _random_module(code.AriaExperts(config))


def _muse() -> Any:
    """A norm after each expert."""
    from transformers.models.muse_spark import modeling_muse_spark as code
    from transformers.models.muse_spark.configuration_muse_spark import MuseSparkTextConfig

    config = MuseSparkTextConfig()
    config.moe_hidden_size, config.moe_intermediate_size, config.num_local_experts = 16, 12, 4
    return _random_module(code.MuseSparkExperts(config))


@pytest.mark.parametrize("build", [_nemotron, _aria, _muse])
def test_other_layouts_run_as_their_modules_describe_them(build: Any) -> None:
    from transformers.integrations.moe import batched_mm_experts_forward

    experts = build()
    x_TD = torch.randn(11, 16, requires_grad=True)
    ids_TK = torch.stack([torch.randperm(4)[:2] for _ in range(11)])
    weights_TK = torch.rand(11, 2, requires_grad=True)
    leaves = (x_TD, weights_TK, *experts.parameters())
    direction_TD = torch.randn(11, 16)
    results = [
        (out_TD, torch.autograd.grad(out_TD, leaves, direction_TD))
        for forward in (batched_mm_experts_forward, plugin.experts_forward)
        for out_TD in [forward(experts, x_TD, ids_TK, weights_TK)]
    ]
    (theirs, their_grads), (ours, our_grads) = results
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for our_grad, their_grad in zip(our_grads, their_grads, strict=True):
        assert torch.allclose(our_grad, their_grad, rtol=1e-4, atol=1e-5)
    swapped_TK = torch.where(ids_TK == 0, 1, torch.where(ids_TK == 1, 0, ids_TK))
    assert not torch.allclose(
        plugin.experts_forward(experts, x_TD, swapped_TK, weights_TK), theirs, atol=1e-2
    )


@torch.no_grad()
def test_ids_of_experts_that_are_elsewhere_add_nothing() -> None:
    experts = experts_of(reference("mixtral"))[0]
    x_TD, weights_TK = torch.randn(6, 48), torch.rand(6, 2)
    ids_TK = torch.tensor([[0, 4], [4, 4], [1, 2], [4, 3], [2, 0], [4, 1]])
    expected_TD = torch.zeros_like(x_TD)
    for place in range(2):
        here_T = ids_TK[:, place] < 4
        one = (ids_TK[here_T, place : place + 1], weights_TK[here_T, place : place + 1])
        expected_TD[here_T] += plugin.experts_forward(experts, x_TD[here_T], *one)
    # A weight where no expert is must not count.
    assert torch.allclose(plugin.experts_forward(experts, x_TD, ids_TK, weights_TK), expected_TD, atol=1e-5)


def test_moe_core_needs_no_transformers() -> None:
    """The library is imported, and register() says what is missing, where transformers cannot be imported."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import moe_core, moe_core.checkpoint.store\n"
        "from moe_core.integrations.transformers import register\n"
        "try:\n    register()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO
    ).stdout
    assert told.startswith(MissingLibrary.__name__)
    assert "pip install transformers" in told


def test_a_model_without_values_does_not_run_as_the_page_says() -> None:
    empty = reference("mixtral").to("meta")
    ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
    for implementation in ("turnout", "eager"):
        empty.set_experts_implementation(implementation)
        with pytest.raises(NotImplementedError):
            empty(ids)
    empty.set_experts_implementation("batched_mm")
    assert empty(ids).logits.shape == (1, 4, 97)
