"""Hugging Face's model behind our front, requests that wait together as one batch that none can join later.

python -m benchmarks.fronts.transformers MODEL PORT THREADS
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.fronts.serving import Inbox, Wanted, serve

GATHER_S = 0.02


class StaticBatches:
    """A plain greedy loop, which costs less than generate()."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        options = {"dtype": torch.bfloat16, "attn_implementation": "sdpa", "local_files_only": True}
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                model, experts_implementation="grouped_mm", **options
            )
        except (TypeError, ValueError):
            loaded = AutoModelForCausalLM.from_pretrained(model, **options)
        self.model = loaded.eval()

    def run(self, inbox: Inbox) -> None:
        """One batch of equally long prompts after the other."""
        import time

        waiting: list[Wanted] = []
        while True:
            waiting += inbox.take(wait=not waiting)
            time.sleep(GATHER_S)
            waiting += inbox.take(wait=False)
            shape = (len(waiting[0].prompt), waiting[0].new)
            batch = [one for one in waiting if (len(one.prompt), one.new) == shape]
            waiting = [one for one in waiting if one not in batch]
            self._answer(batch)

    @torch.inference_mode()
    def _answer(self, batch: list[Wanted]) -> None:
        ids_BS, cache = torch.tensor([one.prompt for one in batch]), DynamicCache(config=self.model.config)
        for _ in range(batch[0].new):
            out = self.model(input_ids=ids_BS, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids_BS = out.logits[:, -1].argmax(-1, keepdim=True)
            for one, token in zip(batch, ids_BS[:, 0].tolist(), strict=True):
                one.emit([token])


def main() -> None:
    model, port, threads = sys.argv[1:4]
    serve(StaticBatches(model, int(threads)), int(port))


if __name__ == "__main__":
    main()
