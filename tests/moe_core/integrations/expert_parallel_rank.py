"""One of two processes that share a model's experts; run by test_expert_parallel. Writes what it saw as a file.

Arguments: rank, file where the two meet, directory of the model, how the batch is shared, dispatch, file of the result.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.device_mesh import init_device_mesh
from transformers.distributed.expert_parallel import apply_expert_parallelism
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_core.integrations.transformers import experts_forward, register


def batch_of(rank: int, sharing: str) -> torch.Tensor:
    """The ranks of a tensor-parallel group have one batch; those of data parallelism one each, of unequal lengths."""
    generator = torch.Generator().manual_seed(3 if sharing == "same" else 30 + rank)
    return torch.randint(0, 97, (2, 17 if sharing == "same" else 9 + 4 * rank), generator=generator)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    full = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach().clone()


def shared_out(directory: str, sharing: str, implementation: str) -> Any:
    """The model with its experts dealt out over two ranks by transformers' own plan.

    `from_pretrained(distributed_config=…)` comes to the same call, but asks for the accelerate package first.
    """
    if sharing == "same":
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("ep",))
        ep_mesh, tp_mesh = mesh, mesh
    else:
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("ep", "tp"))
        ep_mesh, tp_mesh = mesh["ep"], mesh["tp"]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="turnout"
    )
    plan = model._expand_parallel_plan(model.ep_plan)
    assert set(plan.values()) == {"grouped_gemm", "ep_dispatch_experts"}
    return apply_expert_parallelism(model, ep_mesh, tp_mesh, plan, ep_implementation=implementation)


def main() -> None:
    rank, meeting, directory, sharing, implementation, result = sys.argv[1:]
    os.environ.update({"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
    register()
    model = shared_out(directory, sharing, implementation)
    ids = batch_of(int(rank), sharing)
    rows: list[int] = []

    def counting(experts: Any, x_TD: torch.Tensor, *choice: torch.Tensor) -> torch.Tensor:
        rows.append(x_TD.shape[0])
        return experts_forward(experts, x_TD, *choice)

    ALL_EXPERTS_FUNCTIONS.register("turnout", counting)
    with torch.no_grad():
        silent = model(ids).logits
    register()
    logits = model(ids).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
    learnt = {name: p for name, p in model.named_parameters() if p.grad is not None}
    torch.save(
        {
            "logits": whole(logits),
            "silent": whole(silent),
            "rows": rows,
            "gradients": {name: whole(p.grad) for name, p in learnt.items()},
            "num_local": [p.to_local().shape[0] for name, p in learnt.items() if "experts" in name],
        },
        result,
    )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
