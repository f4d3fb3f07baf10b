// Asking again and again, politely: one request at a time, none while the tab is hidden, slower while the server fails.

import {noted, received} from "./api.js";

const SLOWEST_MS = 30000;

function visible(signal) {
  if (!document.hidden) return Promise.resolve();
  return new Promise(resolve => {
    const done = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    document.addEventListener("visibilitychange", done);
    signal.addEventListener("abort", done);
  });
}

export function pause(ms, signal) {
  return new Promise(resolve => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}

/** work(signal) at once and then each `ms`, until the signal; where work returns a number, it is that many milliseconds until
 * the next. onState(error or null) after each. Returns `now`: ask at once. */
export function poll(work, ms, signal, onState = () => {}) {
  let hurry = () => {};
  (async () => {
    let failures = 0;
    while (!signal.aborted) {
      await visible(signal);
      if (signal.aborted) return;
      let wanted = ms;
      try {
        wanted = await work(signal) ?? ms;
        failures = 0;
        onState(null);
      } catch (error) {
        if (signal.aborted || error.status === 401) return;
        failures++;
        onState(noted(error));
      }
      const wait = failures ? Math.min(ms * 2 ** failures, SLOWEST_MS) : wanted;
      await Promise.race([pause(wait, signal), new Promise(resolve => hurry = resolve)]);
    }
  })();
  return () => hurry();
}

/** Server-sent events over fetch, which unlike EventSource sends a header. on(event, data, id) for each; returns at its end. */
export async function readEvents(response, on) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {done, value} = await received(reader.read());
    if (done) return;
    text += value.replaceAll("\r\n", "\n");
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const fields = {event: "message", data: [], id: ""};
      for (const line of text.slice(0, end).split("\n")) {
        const [, name, content] = /^([a-z]*): ?(.*)$/.exec(line) || [];
        if (name === "data") fields.data.push(content);
        else if (name) fields[name] = content;
      }
      text = text.slice(end + 2);
      if (fields.data.length) on(fields.event, fields.data.join("\n"), fields.id);
    }
  }
}
