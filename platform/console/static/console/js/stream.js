// Server-sent events over fetch, for answers that stream.
//
//   const run = streamChat("/v1/chat/completions", body, { delta(text, chunk), usage(usage), done(reason), error(message, code) });
//   run.stop();   await run.finished;   run.timing → {firstMs, totalMs, tokensPerSecond}
// Errors come as OpenAI error objects, before or in the middle of the stream; a stream that ends without [DONE] is an error.
import { csrf, t } from "./boot.js";

// Reads `data:` lines across chunk borders; a multi-byte character may be cut in two by the network, so decode as a stream.
export async function* events(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
        if (data) yield data;
      }
      if (done) return;
    }
  } finally { reader.cancel().catch(() => {}); }
}

export function streamChat(url, body, handlers) {
  const abort = new AbortController(), timing = { firstMs: null, totalMs: null, tokens: 0, tokensPerSecond: null };
  const started = performance.now();
  async function go() {
    let ended = false, reason = null, lastAt = null;
    try {
      const answer = await fetch(url, {
        method: "POST", credentials: "same-origin", signal: abort.signal,
        headers: { "Content-Type": "application/json", Accept: "text/event-stream", "X-CSRFToken": csrf() },
        body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      });
      if (!answer.ok) {
        const told = await answer.json().catch(() => null);
        handlers.error?.(told?.error?.message ?? told?.detail ?? t("The server refused this ({status}).", { status: answer.status }), told?.error?.code ?? answer.status);
        return;
      }
      for await (const data of events(answer.body)) {
        if (data === "[DONE]") { ended = true; break; }
        const chunk = JSON.parse(data);
        if (chunk.error) { handlers.error?.(chunk.error.message, chunk.error.code); return; }
        const choice = chunk.choices?.[0], text = choice?.delta?.content ?? choice?.text ?? "";
        if (text) {
          const at = performance.now();
          timing.firstMs ??= at - started; lastAt = at; timing.tokens += 1;
          handlers.delta?.(text, chunk, timing);
        }
        if (choice?.finish_reason) reason = choice.finish_reason;
        if (chunk.usage) { timing.tokens = chunk.usage.completion_tokens ?? timing.tokens; handlers.usage?.(chunk.usage); }
      }
      timing.totalMs = performance.now() - started;
      // The first token belongs to the wait, the rest to the pace.
      const pace = (lastAt ?? 0) - started - (timing.firstMs ?? 0);
      timing.tokensPerSecond = timing.tokens > 1 && pace > 0 ? ((timing.tokens - 1) * 1000) / pace : null;
      if (ended) handlers.done?.(reason, timing);
      else handlers.error?.(t("The stream ended before the answer was complete."), "cut_off");
    } catch (problem) {
      if (problem.name === "AbortError") handlers.done?.("stopped", timing);
      else handlers.error?.(t("No answer from the server. Check the connection and try again."), "network");
    }
  }
  return { stop: () => abort.abort(), finished: go(), timing };
}
