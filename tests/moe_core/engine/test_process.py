"""The engine as a process of its own: it starts, it drains, and it says why it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.moe_core.engine.model_dirs import tiny_model, write_model_dir
from tests.policies import may_choose_batch

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def hashed_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    return path, write_model_dir(path, tiny_model())


@asynccontextmanager
async def engine_process(tmp_path: Path, model_dir: Path, files: dict[str, str], **changes):
    spec = {
        "model_dir": str(model_dir),
        "socket_path": str(tmp_path / "e.sock"),
        "files": files,
        "dtype": "float32",
        "kv_tokens": 4096,
        "version": "v3",
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec | changes))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moe_core.engine.server", str(tmp_path / "spec.json"),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def state_line(process, wanted: str) -> dict:
    async with asyncio.timeout(120):
        while line := await process.stdout.readline():
            value = json.loads(line)
            if value.get("state") == wanted:
                return value
    raise AssertionError((await process.stderr.read()).decode())


def session_for(tmp_path: Path) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "e.sock")))


async def test_sigterm_lets_the_open_answers_end_and_takes_no_new_ones(hashed_dir, tmp_path) -> None:
    async with engine_process(tmp_path, *hashed_dir, drain_s=60) as process, session_for(tmp_path) as session:
        await state_line(process, "ready")
        assert (tmp_path / "e.sock").stat().st_mode & 0o077 == 0
        body = {"prompt": "go on", "max_tokens": 300, "ignore_eos": True}
        async with session.post("http://engine/generate", json=body) as response:
            await response.content.readline()
            process.send_signal(signal.SIGTERM)
            await state_line(process, "draining")
            async with session.post("http://engine/generate", json=body) as refused:
                assert refused.status == 503
                assert (await refused.json())["error"]["code"] == "draining"
            last = [json.loads(line) async for line in response.content][-1]
        assert last["type"] == "done"
        assert last["usage"]["completion_tokens"] == 300
        assert await asyncio.wait_for(process.wait(), 30) == 0
    assert not (tmp_path / "e.sock").exists()


async def test_answers_that_outlast_the_drain_end_with_an_error_event(hashed_dir, tmp_path) -> None:
    async with engine_process(tmp_path, *hashed_dir, drain_s=0) as process, session_for(tmp_path) as session:
        await state_line(process, "ready")
        body = {"prompt": "go on", "max_tokens": 2000, "ignore_eos": True}
        async with session.post("http://engine/generate", json=body) as response:
            await response.content.readline()
            process.send_signal(signal.SIGTERM)
            last = [json.loads(line) async for line in response.content][-1]
        assert (last["type"], last["code"]) == ("error", "draining")
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_one_flipped_byte_is_named_and_never_served(hashed_dir, tmp_path) -> None:
    model_dir, files = hashed_dir
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in files:
        raw = bytearray((model_dir / name).read_bytes())
        if name == "experts-1.safetensors":
            raw[-1] ^= 1
        (broken / name).write_bytes(raw)
    async with engine_process(tmp_path, broken, files) as process, session_for(tmp_path) as session:
        failed = await state_line(process, "failed")
        async with session.get("http://engine/health") as response:
            health = await response.json()
        assert await asyncio.wait_for(process.wait(), 30) == 3
    assert failed["code"] == "HashMismatch"
    assert "experts-1.safetensors" in failed["message"]
    assert health["state"] == "failed"
    assert health["error"] == {"code": "HashMismatch", "message": failed["message"]}


async def test_a_wrong_specification_is_told_with_exit_code_2(hashed_dir, tmp_path) -> None:
    async with engine_process(tmp_path, *hashed_dir, max_sequences=0) as process:
        stdout, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 2
    assert "max_sequences" in json.loads(stdout)["message"]


async def test_a_domain_that_names_a_missing_expert_is_told_with_exit_code_3(hashed_dir, tmp_path) -> None:
    domains = [{"code": "a", "name_en": "A", "name_zh": "甲", "experts": [9]}]
    async with engine_process(tmp_path, *hashed_dir, domains=domains) as process:
        failed = await state_line(process, "failed")
        assert await asyncio.wait_for(process.wait(), 30) == 3
    assert "expert 9" in failed["message"]


@pytest.mark.skipif(
    not may_choose_batch(), reason="policies of threads are Linux's, and a sandbox may forbid them"
)
async def test_threads_that_answer_give_way_to_those_that_compute(tmp_path, hashed_dir):
    model_dir, files = hashed_dir
    async with engine_process(tmp_path, model_dir, files, num_threads=2) as process:
        await state_line(process, "ready")
        threads = set(map(int, os.listdir(f"/proc/{process.pid}/task")))
        policies = {thread: os.sched_getscheduler(thread) for thread in threads}
    assert policies.pop(process.pid) == os.SCHED_BATCH
    assert list(policies.values()).count(os.SCHED_OTHER) >= 2, policies
