"""What is changed in llama.cpp's source before it is compiled here."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.llamacpp import BARRIER, LOADS_TILES, _keep_tile_stores


def test_the_barrier_stands_once_before_the_tiles_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mmq.cpp"
    path.write_text(f"    tc.rows[7] = 16;\n\n{LOADS_TILES}\n}}\n")
    for _ in range(2):
        _keep_tile_stores(path)
        assert path.read_text() == f"    tc.rows[7] = 16;\n\n{BARRIER}{LOADS_TILES}\n}}\n"


def test_a_source_that_loads_no_tiles_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mmq.cpp"
    path.write_text("// tiles are no longer loaded here\n")
    _keep_tile_stores(path)
    assert path.read_text() == "// tiles are no longer loaded here\n"
