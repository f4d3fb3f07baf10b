// Presets and pipelines: to read, and to check a text before anybody relies on it.

import {ApiError, get, part, received, send, session} from "./api.js";
import {copier, fill, h, panel, redraw, refusal, table} from "./dom.js";

const YAML = "application/yaml";
const CHECK_MS = 600;

export async function catalogPage(main, {signal}) {
  const body = h("div");
  fill(main, h("div", {class: "head"}, h("h1", {}, "Presets and pipelines"),
    h("div", {class: "actions"}, session.can("admin") && h("a", {class: "button", href: "#/check"}, "Check YAML"))), body);
  try {
    const [{presets}, {pipelines}] = await Promise.all([get("/v1/presets", signal), get("/v1/pipelines", signal)]);
    fill(body, panel("Presets", {note: h("span", {class: "note"}, "what jobs name")}, list("presets", presets, one => one.pipeline)),
      panel("Pipelines", {note: h("span", {class: "note"}, "what presets are made of")}, list("pipelines", pipelines, one => Object.keys(one.params || {}).join(", "))));
  } catch (error) {
    if (!signal.aborted) fill(body, refusal(error));
  }
}

function list(kind, items, middle) {
  if (!items.length) return h("p", {class: "none"}, "None.");
  return table(kind, ["Name", "Description", [kind === "presets" ? "Pipeline" : "Parameters", "big"], ["Origin", "fit"], ["Version", "num big"]],
    h("tbody", {}, items.map(one => h("tr", {}, h("th", {scope: "row"}, h("a", {class: "name", href: `#/${kind}/${part(one.name)}`}, one.name)), h("td", {}, one.description || ""),
      h("td", {class: "big"}, middle(one)), h("td", {class: "fit"}, h("span", {class: "badge"}, one.origin), one.errors && one.errors.length ? [" ", h("span", {class: "badge bad", title: one.errors.map(fault => fault.message || String(fault)).join("\n")}, "broken")] : null), h("td", {class: "num big"}, one.version ?? "–")))));
}

export async function recipePage(main, {parts: [kind, name], signal}) {
  fill(main, h("p", {class: "none"}, "Looking…"));
  try {
    const path = `/v1/${kind}/${part(name)}`;
    const answer = await send("GET", path, {headers: {Accept: YAML}, signal});
    const text = await received(answer.text());
    document.title = `${name} – nommerd`;
    fill(main, h("div", {class: "head"}, h("h1", {class: "name"}, name), h("span", {class: "badge"}, kind === "presets" ? "preset" : "pipeline"),
      h("div", {class: "actions"}, copier(text), session.can("admin") && h("a", {class: "button", href: "#/check", on: {click: () => checkPage.text = text}}, "Check a change"),
        session.can("submit") && h("a", {class: "button main", href: `#/submit?${kind === "presets" ? "preset" : "pipeline"}=${part(name)}`}, "Submit with it"))),
    h("section", {class: "panel", "aria-label": "YAML"}, h("pre", {class: "yaml", tabindex: "0", "aria-label": `${name} as YAML`}, text)));
  } catch (error) {
    if (!signal.aborted) fill(main, refusal(error));
  }
}

export function checkPage(main, {signal}) {
  const said = h("div", {role: "status", "aria-live": "polite"});
  const text = h("textarea", {id: "yaml", rows: 22, spellcheck: "false", wrap: "off", value: checkPage.text || "", placeholder: "kind: preset\nname: …"});
  let timer = 0;
  let asks = new AbortController();
  const check = async () => {
    asks.abort();
    asks = new AbortController();
    checkPage.text = text.value;
    if (!text.value.trim()) return fill(said);
    const kind = /^kind:\s*["']?pipeline\b/m.test(text.value) ? "pipelines" : "presets";
    const [, name = "unnamed"] = /^name:\s*["']?([^\s"'#]+)/m.exec(text.value) || [];
    try {
      const answer = await send("PUT", `/v1/${kind}/${part(name)}?dry_run=true`, {body: text.value, type: YAML, signal: asks.signal});
      await received(answer.text());
      text.removeAttribute("aria-invalid");
      fill(said, h("div", {class: "box good"}, h("p", {}, `The ${kind === "presets" ? "preset" : "pipeline"} ${name} is right. Nothing was stored.`)));
    } catch (error) {
      if (asks.signal.aborted) return;
      text.setAttribute("aria-invalid", "true");
      redraw(said, JSON.stringify([error.message, error.faults]), () => error instanceof ApiError && error.faults.length ? faultList(error.faults, text) : refusal(error));
    }
    return undefined;
  };
  text.addEventListener("input", () => {
    clearTimeout(timer);
    delete said.dataset.sign;
    timer = setTimeout(check, CHECK_MS);
  });
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    asks.abort();
  }, {once: true});
  fill(main, h("div", {class: "head"}, h("h1", {}, "Check YAML")), h("div", {class: "columns"},
    h("section", {class: "panel"}, h("div", {class: "body"}, h("label", {for: "yaml"}, "A preset or a pipeline"), text,
      h("p", {class: "row"}, h("button", {class: "main", type: "button", on: {click: check}}, "Check"), h("span", {class: "note"}, "Nothing is stored.")))), said));
  if (checkPage.text) check();
}

/** The place of a fault: line and column, where it has them. */
function placeOf(fault) {
  const found = /(\d+):(\d+)$/.exec(fault.place || "") || /line (\d+),? column (\d+)/.exec(`${fault.place} ${fault.message}`);
  return found ? {line: Number(found[1]), column: Number(found[2])} : null;
}

function faultList(faults, text) {
  return h("div", {}, faults.map(fault => {
    const place = placeOf(fault);
    return h("div", {class: "box bad"}, h("p", {}, place ? h("button", {class: "plain", type: "button", on: {click: () => go(text, place)}}, `Line ${place.line}, column ${place.column}`) : h("span", {class: "note"}, fault.place)),
      h("p", {}, h("strong", {}, fault.message), " ", h("code", {class: "note"}, fault.code)), fault.hint ? h("p", {class: "note"}, fault.hint) : null);
  }));
}

/** Put the cursor there, the rest of the line selected. */
function go(text, {line, column}) {
  const lines = text.value.split("\n");
  const begin = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
  const end = begin + (lines[line - 1] || "").length;
  text.focus();
  text.setSelectionRange(Math.min(begin + column - 1, end), end);
  text.scrollTop = Math.max(0, (line - 6) * text.scrollHeight / Math.max(1, lines.length));
}
