"""One contestant in a process of its own: loads a model, then answers commands, a line of JSON each way.

    python -m benchmarks.contestant turnout|torch|transformers MODEL_DIR THREADS

"turnout" is the engine as it serves; "torch" is our decoder without compiled kernels, the reference of packed models;
"transformers" is Hugging Face's model, the reference of all others and the peer.
    {"do": "prefill", "prompt": [...]}                      seconds until the first token
    {"do": "decode", "prompts": [[...]], "new": 33}         seconds for all tokens after the first, and the tokens
    {"do": "judge", "prompt": [...], "answer": [...]}       how far each token is from the reference's best
Seconds are of the wall and of the processor.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch

from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta
from moe_core.engine.sequence import SamplingParams
from moe_core.kernels.cpu.attach import attach
from moe_core.operations.parts import decoder_of
from moe_core.spec import ServeSpec


class Contestant(Protocol):
    """What is asked of each."""

    def first(self, prompts: list[list[int]], new: int) -> None:
        """Compute the prompts and their first tokens."""
        ...

    def rest(self) -> list[list[int]]:
        """Compute all other tokens; every answer from its first token on."""
        ...

    def logits(self, ids: list[int]) -> torch.Tensor:
        """(S, V) float32 logits of one sequence."""
        ...


class NoText:
    """Tokens are counted, not read."""

    def step(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


class Turnout:
    """The engine, with its kernels or without."""

    def __init__(self, path: Path, threads: int, *, kernels: bool) -> None:
        import moe_core

        self.model = decoder_of(moe_core.load(path, "bfloat16").eval())
        if kernels:
            attach(self.model, threads)
        options: dict[str, Any] = {"num_threads": threads, "ngram_tokens": 0, "max_batch_tokens": 4096, "max_wait_s": 3600.0}
        self.engine = Engine(ServeSpec(model_dir=path, socket_path=Path("none"), **options), self.model)
        self.answers: dict[int, list[int]] = {}

    def first(self, prompts: list[list[int]], new: int) -> None:
        self.engine.pool.forget_all()
        sampling = SamplingParams(max_tokens=new, ignore_eos=True)
        self.answers = {self.engine.submit(ids, sampling, NoText()).id: [] for ids in prompts}
        while not all(self.answers.values()):
            self.step()

    def rest(self) -> list[list[int]]:
        while self.engine.has_work:
            self.step()
        return list(self.answers.values())

    def step(self) -> None:
        """One step of the engine; its tokens join the answers."""
        for event in self.engine.step():
            if isinstance(event, Delta):
                self.answers[event.sequence_id] += event.token_ids

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(torch.tensor([ids]))[0].float()


class Transformers:
    """Hugging Face's model under a plain greedy loop, which costs less than generate()."""

    def __init__(self, path: Path, threads: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        options = {"dtype": torch.bfloat16, "attn_implementation": "sdpa", "local_files_only": True}
        try:
            model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="grouped_mm", **options)
        except (TypeError, ValueError):
            model = AutoModelForCausalLM.from_pretrained(path, **options)
        self.model, self.new = model.eval(), 0

    @torch.inference_mode()
    def first(self, prompts: list[list[int]], new: int) -> None:
        from transformers import DynamicCache

        self.new, self.cache = new, DynamicCache(config=self.model.config)
        self.columns = [self._next(torch.tensor(prompts))]

    @torch.inference_mode()
    def rest(self) -> list[list[int]]:
        while len(self.columns) < self.new:
            self.columns.append(self._next(self.columns[-1]))
        return torch.cat(self.columns, 1).tolist()

    def _next(self, ids_BS: torch.Tensor) -> torch.Tensor:
        out = self.model(input_ids=ids_BS, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([ids])).logits[0].float()


def gap(logits_SV: torch.Tensor, start: int, answer: list[int]) -> float:
    """The largest distance of a chosen token's logit to the best one, as a share of the spread of all logits."""
    rows = logits_SV[start - 1 : start - 1 + len(answer)]
    best, chosen = rows.amax(-1), rows.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return float(((best - chosen) / (best - rows.amin(-1))).max())


def timed(call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds on the wall and of this process's processors, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, result


def answer(contestant: Contestant, told: dict[str, Any]) -> dict[str, Any]:
    """What a command is answered with."""
    if told["do"] == "prefill":
        seconds, _ = timed(lambda: contestant.first([told["prompt"]], 1))
        contestant.rest()
        return seconds
    if told["do"] == "decode":
        contestant.first(told["prompts"], told["new"])
        seconds, answers = timed(contestant.rest)
        return {**seconds, "tokens": sum(map(len, answers)) - len(answers), "answers": answers}
    logits_SV = contestant.logits([*told["prompt"], *told["answer"]])
    return {"gap": gap(logits_SV, len(told["prompt"]), told["answer"])}


def memory_bytes() -> int:
    """What this process holds that is its own: proportional set size."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))


def main() -> None:
    kind, path, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    # What libraries print must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    if kind == "transformers":
        seconds, contestant = timed(lambda: Transformers(path, threads))
    else:
        seconds, contestant = timed(lambda: Turnout(path, threads, kernels=kind == "turnout"))
    _say(answers, {"load": seconds, "bytes": memory_bytes()})
    for line in sys.stdin:
        _say(answers, answer(contestant, json.loads(line)))


def _say(answers: TextIO, reply: dict[str, Any]) -> None:
    answers.write(json.dumps(reply) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
