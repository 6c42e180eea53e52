"""A small real program that speaks the protocol of workers.runtime, for tests of the machinery around a job.

The name of the job is its script: words like `steps:8 delay:0.05 die:3 fail:2`. Its "training" is a chain of hashes:
a run that was interrupted and resumed ends with the same bytes as one that was not, and with others if a step was done
twice or left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

SPEC = {
    "family": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}  # fmt: skip


def tell(kind: str, **payload: object) -> None:
    print(json.dumps({"kind": kind, **payload}), flush=True)


def latest(folder: Path) -> tuple[int, str]:
    found = sorted(folder.glob("checkpoint-*/manifest.json"))
    state = json.loads(found[-1].read_text()) if found else {"step": 0, "chain": ""}
    return state["step"], state["chain"]


def save(folder: Path, step: int, chain: str) -> None:
    draft, place = folder / ".draft", folder / f"checkpoint-{step:06d}"
    draft.mkdir()
    manifest = json.dumps({"step": step, "chain": chain}).encode()
    (draft / "manifest.json").write_bytes(manifest)
    draft.rename(place)
    tell(
        "checkpoint",
        path=str(place),
        step=step,
        stage="convert",
        sha256=hashlib.sha256(manifest).hexdigest(),
    )


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    script = dict(word.partition(":")[::2] for word in job["spec"]["name"].split())
    steps, delay = int(script.get("steps", 4)), float(script.get("delay", 0))
    checkpoints, control = Path(job["checkpoint_dir"]), Path(job["control"])
    tell("stage", stage="convert", index=1, of=3)
    if "say" in script:
        print(script["say"], file=sys.stderr, flush=True)
    if "garbage" in script:
        print('{"kind": "step", "loss": NaN}\nnot json at all\n[1]', flush=True)
    if "secrets" in script:
        tell("log", level="info", text=json.dumps(sorted(os.environ)))
    step, chain = latest(checkpoints)
    while step < steps:
        if control.exists():
            how = control.read_text()
            if how == "pause":
                save(checkpoints, step, chain)
            tell("stopped", how=how)
            return 0
        if script.get("die") == str(step):
            os.kill(os.getpid(), signal.SIGKILL)
        if script.get("murder") == str(step):
            os.kill(os.getppid(), signal.SIGKILL)
        if script.get("fail") == str(step):
            tell("failed", code="non_finite_loss", message=f"the loss is NaN at step {step}")
            return 1
        chain = hashlib.sha256(f"{chain}{step}".encode()).hexdigest()
        step += 1
        time.sleep(delay)
        tell("step", stage="convert", step=step, of=steps, loss=1 / step, tokens_per_second=10.0)
        if step % 2 == 0 and step < steps and "unsaved" not in script:
            save(checkpoints, step, chain)
    out = Path(job["out_dir"])
    (out / "config.json").write_text(json.dumps(SPEC))
    (out / "trunk.safetensors").write_text(chain)
    tell("result", result={"spec": SPEC, "inspection": {"layers": 4}, "steps": step})
    return 0


sys.exit(main())
