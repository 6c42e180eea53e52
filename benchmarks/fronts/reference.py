"""The judge: the model in float32, a line of JSON each way. `python -m benchmarks.fronts.reference MODEL`

    {"prompt": [...], "answer": [...]}  ->  {"gap": 0.001, "agreement": 0.97}

`gap` is the largest distance of an answer's token to the best one after the same beginning, as a share of the spread of all
logits; `agreement` the share of the tokens that are the best.
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def judged(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> dict[str, float]:
    """How far an answer is from the reference's, token by token."""
    ids_BS = torch.tensor([prompt + answer])
    logits_SV = model(input_ids=ids_BS).logits[0, len(prompt) - 1 : -1].float()
    chosen, best = torch.tensor(answer), logits_SV.amax(-1)
    lacking = best - logits_SV.gather(1, chosen[:, None])[:, 0]
    gap = (lacking / (best - logits_SV.amin(-1))).max()
    return {"gap": float(gap), "agreement": float((logits_SV.argmax(-1) == chosen).float().mean())}


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(
        sys.argv[1], dtype=torch.float32, local_files_only=True
    ).eval()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        print(json.dumps(judged(model, told["prompt"], told["answer"])), flush=True)


if __name__ == "__main__":
    main()
