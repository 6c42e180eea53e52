"""The console's modules where they run: in a browser, against hostile timing instead of a kind server."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.e2e.conftest import Stack

pytestmark = pytest.mark.browser

# Cuts a stream of events into pieces of `size` bytes, so that lines and characters are torn apart.
TORN = """async ({ text, size }) => {
  const { events } = await import("/static/console/js/stream.js");
  const bytes = new TextEncoder().encode(text), out = [];
  const body = new ReadableStream({ start(pipe) {
    for (let at = 0; at < bytes.length; at += size) pipe.enqueue(bytes.slice(at, at + size));
    pipe.close();
  } });
  for await (const data of events(body)) out.push(data);
  return out;
}"""

# A socket under our hand: `script` is what the server does, one step after the other.
SOCKET = """async (script) => {
  const { connect } = await import("/static/console/js/live.js");
  const real = window.WebSocket, heard = [], sent = [], made = [];
  class Fake {
    static OPEN = 1;
    constructor() { this.readyState = 1; made.push(this); }
    send(text) { sent.push(text); }
    close() { this.readyState = 3; }
  }
  window.WebSocket = Fake;
  try {
    const feed = connect("/ws/anything/", {
      snapshot: (data) => heard.push(`snapshot ${data.seq}`),
      event: (data) => heard.push(`event ${data.seq ?? "-"}`),
      state: ({ kind }) => { if (heard.at(-1) !== kind) heard.push(kind); },
    });
    for (const step of script) {
      const socket = made.at(-1);
      if (step === "lost") { socket.readyState = 3; socket.onclose({ code: 1006 }); }
      else if (step === "refused") socket.onclose({ code: 4403 });
      else if (step === "wait") { const before = made.length; while (made.length === before) await new Promise((next) => setTimeout(next, 20)); }
      else socket.onmessage({ data: JSON.stringify(step) });
    }
    feed.close();
  } finally { window.WebSocket = real; }
  return { heard, sent, made: made.length };
}"""


@pytest.fixture
def console(page: Page, stack: Stack) -> Page:
    page.goto(stack.url("/"))
    return page


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_a_stream_reads_the_same_however_it_is_cut(console: Page, size: int) -> None:
    text = 'data: {"a":"客服回复"}\n\n: a comment\n\ndata: {"b":1}\r\n\r\ndata: two\ndata: lines\n\ndata: [DONE]\n\n'
    found = console.evaluate(TORN, {"text": text, "size": size})
    assert found == ['{"a":"客服回复"}', '{"b":1}', "two\nlines", "[DONE]"]


def test_a_half_event_at_the_end_is_not_delivered(console: Page) -> None:
    assert console.evaluate(TORN, {"text": "data: whole\n\ndata: hal", "size": 4}) == ["whole"]


def frame(seq: int | None) -> dict[str, Any]:
    return {"type": "event", "seq": seq} if seq is not None else {"type": "frame"}


def test_a_gap_asks_for_a_snapshot_once_and_goes_on_from_it(console: Page) -> None:
    script = [
        {"type": "snapshot", "seq": 4},
        frame(5),
        frame(7),
        frame(8),
        {"type": "snapshot", "seq": 8},
        frame(9),
    ]
    found = console.evaluate(SOCKET, script)
    assert [one for one in found["heard"] if " " in one] == ["snapshot 4", "event 5", "snapshot 8", "event 9"]
    assert found["sent"] == ['{"type":"resync"}']


def test_what_was_already_seen_is_dropped_and_what_has_no_number_passes(console: Page) -> None:
    found = console.evaluate(
        SOCKET, [{"type": "snapshot", "seq": 4}, frame(4), frame(3), frame(None), frame(5)]
    )
    assert [one for one in found["heard"] if " " in one] == ["snapshot 4", "event -", "event 5"]


def test_a_lost_socket_is_opened_again_and_starts_from_a_snapshot(console: Page) -> None:
    script = [{"type": "snapshot", "seq": 1}, "lost", "wait", {"type": "snapshot", "seq": 9}, frame(10)]
    found = console.evaluate(SOCKET, script)
    assert found["made"] == 2
    assert "lost" in found["heard"] and found["heard"][-1] == "event 10"


def test_a_refused_socket_is_not_tried_again(console: Page) -> None:
    found = console.evaluate(SOCKET, ["refused"])
    assert found["heard"][-1] == "refused" and found["made"] == 1


def test_heat_is_anchored_at_the_fair_share_and_sleep_is_no_colour(console: Page) -> None:
    found = console.evaluate("""async () => {
      const { loads, quantise, ratioOf, ASLEEP, QUIET, NONE } = await import("/static/console/js/heat.js");
      const bytes = [...loads(new Uint32Array([10, 10, 10, 10, 40, 0, 0, 0, 0, 0, 0, 0]), 3, 4)];
      return { bytes, ASLEEP, QUIET, NONE, one: quantise(1), two: ratioOf(quantise(2)), most: quantise(1e9), least: quantise(1e-9) };
    }""")
    assert found["bytes"][:4] == [found["one"]] * 4 == [127] * 4
    assert found["bytes"][4] == 127 + 84 and found["bytes"][5:8] == [found["ASLEEP"]] * 3
    assert found["bytes"][8:] == [found["QUIET"]] * 4, (
        "a layer through which nothing came is quiet, not asleep"
    )
    assert len({found["ASLEEP"], found["QUIET"], found["NONE"], found["least"], found["most"]}) == 5
    assert (found["two"], found["most"], found["least"]) == (2, 253, 1)


def test_counts_travel_as_little_endian_words(console: Page) -> None:
    import base64
    import struct

    text = base64.b64encode(struct.pack("<3I", 1, 2**31, 70_000)).decode()
    found = console.evaluate(
        "async (text) => [...(await import('/static/console/js/live.js')).counts32(text)]", text
    )
    assert found == [1, 2**31, 70_000]


def test_a_missing_value_breaks_the_line_instead_of_falling_to_zero(console: Page) -> None:
    found = console.evaluate("""async () => {
      const { path } = await import("/static/console/js/charts.js");
      return path([[0, 1], [1, 2], [2, NaN], [3, null], [4, 5]]);
    }""")
    assert found == "M0.0 1.0L1.0 2.0M4.0 5.0h0"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.1, 2.7), (0, 20_000), (0, 0), (-0.5, 0.25), (3.2, 3.2)])
def test_axes_have_round_ticks_that_span_their_values(console: Page, low: float, high: float) -> None:
    found = console.evaluate(
        "async ([low, high]) => (await import('/static/console/js/charts.js')).ticksOf(low, high)",
        [low, high],
    )
    values = found["values"]
    assert values == sorted(set(values)) and 2 <= len(values) <= 8
    assert values[0] <= low + 1e-9 and values[-1] >= high - 1e-9


def test_words_fill_their_places_and_never_become_markup(console: Page) -> None:
    found = console.evaluate("""async () => {
      const { t, el, toast } = await import("/static/console/js/boot.js");
      const box = el("p", {}, t("step {step} of {of}", { step: "<b>1</b>", of: 2 }));
      return [box.innerHTML, t("nobody translated {this}", { this: "x" })];
    }""")
    assert found == ["step &lt;b&gt;1&lt;/b&gt; of 2", "nobody translated x"]


def test_numbers_are_written_as_the_server_writes_them(console: Page) -> None:
    found = console.evaluate("""async () => {
      const { fmt, percent } = await import("/static/console/js/boot.js");
      return [fmt(18420.4), fmt(-3.25, 1), fmt(-0.001, 2), fmt(null), percent(0.018, 1)];
    }""")
    assert found == ["18,420", "−3.3", "0.00", "—", "1.8\u202f%"]


# A clock of our own under the one that is tested, and answers of a server at `offset` from it.
CLOCK = """async (rounds) => {
  const { ServerClock } = await import("/static/console/js/clock.js");
  let here = 1000;
  const time = new ServerClock(() => here), seen = [time.now()];
  for (const { out, back, offset, pause = 0 } of rounds) {
    here += pause;
    const ping = time.ping();
    here += out;
    const told = here + offset;
    here += back;
    time.pong({ t: ping.t, server_ms: told });
    seen.push(time.now() - (here + offset));
  }
  return { seen, error: time.error() };
}"""
HOURS = 3_600_000


def test_the_servers_clock_is_known_to_half_a_round_trip_whatever_the_pages_own_says(console: Page) -> None:
    rounds = [{"out": 200, "back": 20, "offset": 7 * HOURS}, {"out": 4, "back": 6, "offset": 7 * HOURS}]
    found = console.evaluate(CLOCK, rounds)
    assert found["seen"][0] is None, "before the first answer nothing is claimed"
    assert abs(found["seen"][1]) <= 110 and abs(found["seen"][2]) <= 5
    assert found["error"] == 5


def test_a_slower_answer_does_not_spoil_a_quick_one_and_a_clock_that_was_set_does(console: Page) -> None:
    quick, slow = {"out": 5, "back": 5, "offset": 0}, {"out": 900, "back": 10, "offset": 0}
    moved = {"out": 20, "back": 20, "offset": 60_000}
    found = console.evaluate(CLOCK, [quick, slow, moved])
    assert [round(one) for one in found["seen"][1:3]] == [0, 0]
    assert abs(found["seen"][3]) <= 20


def test_the_age_of_a_sample_is_a_number_or_nothing(console: Page) -> None:
    found = console.evaluate("""async () => {
      const { ageOf } = await import("/static/telemetry/picture.js");
      return [ageOf(1000, 3500), ageOf(5000, 3500), ageOf(undefined, 3500), ageOf(null, 3500), ageOf(1000, null)];
    }""")
    assert found == [2.5, 0, None, None, None]


def test_a_board_draws_dense_layers_as_runs_between_those_with_experts(console: Page) -> None:
    found = console.evaluate("""async () => {
      const { rowsOf } = await import("/static/telemetry/picture.js");
      return [rowsOf([2, 3, 5], 9), rowsOf([0, 1], 2), rowsOf([], 4)].map((rows) => rows.map(({ name, index }) => `${name}:${index}`));
    }""")
    assert found == [["0–1:null", "2:0", "3:1", "4:null", "5:2", "6–8:null"], ["0:0", "1:1"], []]


def test_the_share_to_own_experts_comes_from_hits_and_visits_and_is_measured_against_chance(
    console: Page,
) -> None:
    found = console.evaluate("""async () => {
      const { reached, topK, byChance } = await import("/static/telemetry/picture.js");
      const picture = { layers: [1, 3], num_experts: 4, phases: ["all"], domains: ["*"], counts: Float64Array.of(12, 8, 0, 4, 6, 6, 6, 6), reach_domains: ["", "support", "copy"],
        reach: Float64Array.of(4, 0, 8, 6, 0, 0, 2, 0, 10, 1, 0, 0) };
      return { both: reached(picture, "", "support"), prefill: reached(picture, "prefill", "support"), none: reached(picture, "", "copy"), stranger: reached(picture, "", "law"),
        k: topK(picture), chance: [byChance(1, 8, 2), byChance(2, 8, 2), byChance(3, 4, 2)] };
    }""")
    assert found["both"] == {"share": pytest.approx(7 / 18), "tokens": 9}
    assert found["prefill"] == {"share": 0.75, "tokens": 4}
    assert found["none"] == found["stranger"] == {"share": None, "tokens": 0}
    assert found["k"] == 2
    assert found["chance"] == pytest.approx([1 / 4, 1 - 30 / 56, 1.0])


# What is painted for a row of each kind: the colours in the middle of its cells, as "r,g,b,a".
PAINTED = """async ({ experts, width, theme }) => {
  const { Heat, quantise, ASLEEP, QUIET, NONE } = await import("/static/console/js/heat.js");
  document.documentElement.dataset.theme = theme;
  const host = document.createElement("div");
  host.style.inlineSize = `${width}px`;
  document.querySelector("main").append(host);
  const kinds = { fair: quantise(1), hot: quantise(8), cold: quantise(1 / 8), asleep: ASLEEP, quiet: QUIET, none: NONE };
  const heat = new Heat(host, { layers: Object.keys(kinds), experts, groups: 1 });
  heat.show(Uint8Array.from(Object.values(kinds).flatMap((byte) => Array(experts).fill(byte))));
  heat.paint();
  const ratio = devicePixelRatio, seen = {};
  Object.keys(kinds).forEach((name, row) => {
    const y = heat.y(row) + (heat.lamps ? heat.pitch / 2 : Math.max(1, heat.pitch / 2 - 1)), colours = new Set();
    for (let col = 0; col < experts; col++) colours.add(heat.ctx.getImageData(Math.round((heat.x(col) + heat.cell / 2) * ratio), Math.round(y * ratio), 1, 1).data.join());
    seen[name] = [...colours].sort();
  });
  host.remove();
  return { seen, lamps: heat.lamps };
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("experts", "width", "lamps"), [(8, 900, True), (64, 360, False)])
def test_each_kind_of_row_is_painted_and_none_is_taken_for_another(
    console: Page, experts: int, width: int, lamps: bool, theme: str
) -> None:
    found = console.evaluate(PAINTED, {"experts": experts, "width": width, "theme": theme})
    assert found["lamps"] is lamps
    painted = {name: tuple(colours) for name, colours in found["seen"].items()}
    # The middles of the cells, row by row; the glow of the hot ones may tint their neighbours a little.
    assert len(set(painted.values())) == 6, painted


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of "#rrggbb"."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("theme", "least"), [("dark", 3.0), ("light", 1.6)])
def test_a_load_near_the_fair_share_can_be_told_from_the_ground(
    console: Page, theme: str, least: float
) -> None:
    tokens = console.evaluate(
        """(theme) => {
        document.documentElement.dataset.theme = theme;
        const style = getComputedStyle(document.documentElement), read = (name) => style.getPropertyValue(name).trim();
        return { ground: read("--ground"), stops: Array.from({ length: 11 }, (_, i) => read(`--heat-${i}`)) };
    }""",
        theme,
    )
    ground = luminance(tokens["ground"])
    for stop in tokens["stops"]:
        high, low = sorted((luminance(stop), ground), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= least, stop
