"""OpenVINO GenAI's engine with continuous batching behind our front.

python -m benchmarks.fronts.openvino MODEL PORT THREADS
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-not-found]
import openvino_genai as genai  # type: ignore[import-not-found]

from benchmarks.fronts.serving import Inbox, Wanted, serve

CACHE_GB, MOST_SEQUENCES, MOST_TOKENS = 1, 32, 4096


class Pipeline:
    """Steps for as long as there is work."""

    def __init__(self, model: str, threads: int) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_seqs = CACHE_GB, MOST_SEQUENCES
        scheduler.max_num_batched_tokens = MOST_TOKENS
        scheduler.enable_prefix_caching, scheduler.dynamic_split_fuse = False, True
        self.pipeline = genai.ContinuousBatchingPipeline(
            model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self.number = 0

    def run(self, inbox: Inbox) -> None:
        """Add what comes, step, hand out."""
        running: list[tuple[Any, Wanted]] = []
        while True:
            running += [(self._add(wanted), wanted) for wanted in inbox.take(wait=not running)]
            self.pipeline.step()
            for handle, wanted in list(running):
                while handle.can_read():
                    for output in handle.read().values():
                        wanted.emit(list(output.generated_ids))
                if handle.get_status() != genai.GenerationStatus.RUNNING:
                    running.remove((handle, wanted))

    def _add(self, wanted: Wanted) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = wanted.new, True, False
        self.number += 1
        ids = ov.Tensor(np.array([wanted.prompt], dtype=np.int64))
        return self.pipeline.add_request(self.number, ids, config)


def main() -> None:
    model, port, threads = sys.argv[1:4]
    serve(Pipeline(model, int(threads)), int(port))


if __name__ == "__main__":
    main()
