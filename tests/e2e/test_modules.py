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
    assert found["sent"] and set(found["sent"]) == {'{"type":"resync"}'}


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
      const { loads, quantise, ratioOf, ASLEEP, NONE } = await import("/static/console/js/heat.js");
      const bytes = [...loads(new Uint32Array([10, 10, 10, 10, 40, 0, 0, 0, 0, 0, 0, 0]), 3, 4)];
      return { bytes, ASLEEP, NONE, one: quantise(1), two: ratioOf(quantise(2)), most: quantise(1e9), least: quantise(1e-9) };
    }""")
    assert found["bytes"][:4] == [found["one"]] * 4 == [127] * 4
    assert found["bytes"][4] == 127 + 84 and found["bytes"][5:8] == [found["ASLEEP"]] * 3
    assert found["bytes"][8:] == [found["NONE"]] * 4, "a layer through which nothing came says nothing"
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
