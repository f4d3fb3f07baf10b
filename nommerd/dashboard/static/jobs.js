// The list of jobs: filters, which the address keeps, and pages.

import {get, message, query} from "./api.js";
import {fill, h, Keyed, panel, redraw, refusal, say, table} from "./dom.js";
import {ago, badge, FINAL, leaf, progressBar, RUNNING, span, between} from "./format.js";
import {jobLink} from "./overview.js";
import {poll} from "./poll.js";

const PAGE = 50;
const EACH_MS = 5000;
const TYPING_MS = 350;
const STATES = [["", "All"], ["PENDING", "Pending"], [RUNNING.join(","), "Running"], ["FINISHED", "Finished"], ["ERROR", "Error"],
  ["CANCELLED", "Cancelled"], ["ABANDONED", "Abandoned"]];

export function jobList(main, {query: asked, signal}) {
  const state = select("f-state", STATES, asked.get("state") || "");
  const preset = h("input", {id: "f-preset", value: asked.get("preset") || "", autocomplete: "off", spellcheck: "false"});
  const label = h("input", {id: "f-label", value: asked.get("label") || "", placeholder: "name=value", autocomplete: "off", spellcheck: "false"});
  const code = h("input", {id: "f-code", value: asked.get("error_code") || "", placeholder: "input.truncated", autocomplete: "off", spellcheck: "false"});
  const since = select("f-since", [["", "Any time"], ["1", "Last hour"], ["24", "Last 24 hours"], ["168", "Last 7 days"]], "");
  let exactly = asked.get("since") || "";  // a moment that came with the address
  if (exactly) {
    since.append(h("option", {value: "exact"}, "As in the link"));
    since.value = "exact";
  }
  const before = [];  // cursors of earlier pages
  let cursor = null;
  let next = null;
  let asks = new AbortController();
  let timer = 0;

  const body = h("tbody");
  const rows = new Keyed(body, job => job.id, jobRow);
  const frame = table("Jobs, newest first", ["Job", "State", ["Progress", "fit big"], ["Preset", "big"], ["Created", "fit"], ["Took", "num big"], ["Note", "big"]], body);
  const none = h("p", {class: "none"});
  const said = h("div");
  const where = h("span", {class: "note", role: "status"});
  const back = h("button", {type: "button", on: {click: () => turn(() => cursor = before.pop())}}, "Newer");
  const on = h("button", {type: "button", on: {click: () => turn(() => {
    before.push(cursor);
    cursor = next;
  })}}, "Older");

  const fields = () => ({state: state.value, preset: preset.value.trim(), label: label.value.trim(), error_code: code.value.trim(),
    since: since.value === "exact" ? exactly : since.value ? hoursAgo(Number(since.value)) : ""});

  function again() {
    asks.abort();
    asks = new AbortController();
    const mine = asks.signal;
    poll(async () => {
      const page = await get(`/v1/jobs${query({...fields(), limit: String(PAGE), cursor})}`, mine);
      if (mine.aborted) return;
      rows.show(page.jobs);
      next = page.next;
      frame.hidden = !page.jobs.length;
      none.hidden = Boolean(page.jobs.length);
      say(none, Object.values(fields()).some(Boolean) ? "No job is like that." : "No jobs yet.");
      say(where, page.jobs.length ? `${before.length * PAGE + 1} to ${before.length * PAGE + page.jobs.length}${next ? "" : ", the last"}` : "");
      back.disabled = !before.length;
      on.disabled = !next;
    }, EACH_MS, mine, error => redraw(said, error ? message(error) : "", () => error && refusal(error)));
  }

  function turn(move) {
    move();
    again();
    frame.scrollIntoView({block: "nearest"});
  }

  function filter() {
    clearTimeout(timer);
    before.length = 0;
    cursor = null;
    history.replaceState(null, "", `#/jobs${query(fields())}`);
    again();
  }

  const typed = () => {
    clearTimeout(timer);
    timer = setTimeout(filter, TYPING_MS);
  };
  for (const input of [preset, label, code]) {
    input.addEventListener("input", typed);
    input.addEventListener("keydown", event => event.key === "Enter" && filter());  // a form without a button submits nothing
  }
  for (const input of [state, since]) input.addEventListener("change", filter);
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    asks.abort();
  }, {once: true});

  back.disabled = on.disabled = true;
  fill(main, h("div", {class: "head"}, h("h1", {}, "Jobs")), said,
    h("section", {class: "panel", "aria-label": "Jobs"},
      h("form", {class: "filters", "aria-label": "Filters", on: {submit: event => event.preventDefault()}}, [["State", state], ["Preset", preset], ["Label", label], ["Error code", code], ["Created", since]].map(([name, input]) =>
        h("div", {}, h("label", {for: input.id}, name), input))),
      frame, none, h("div", {class: "pager"}, back, on, where)));
  again();
}

function select(id, options, value) {
  const made = h("select", {id}, options.map(([key, text]) => h("option", {value: key}, text)));
  if (value && !options.some(([key]) => key === value)) made.append(h("option", {value}, value.toLowerCase()));
  made.value = value;
  return made;
}

const hoursAgo = hours => new Date(Math.floor((Date.now() - hours * 3600e3) / 60e3) * 60e3).toISOString().slice(0, 19) + "Z";

function jobRow(job) {
  const bar = progressBar();
  const cells = {state: h("td", {class: "fit"}), created: h("td", {class: "fit"}), took: h("td", {class: "num big"}), note: h("td", {class: "say big"})};
  const labels = Object.entries(job.labels).map(([name, value]) => h("span", {class: "chip"}, `${name}=${value}`));
  const element = h("tr", {}, h("th", {scope: "row"}, jobLink(job), h("span", {class: "sub"}, labels.length ? labels : leaf(job.dest))),
    cells.state, h("td", {class: "big"}, bar.element), h("td", {class: "big"}, h("span", {class: "name"}, job.preset || job.pipeline)), cells.created, cells.took, cells.note);
  return {element, update(now) {
    bar.update(now);
    redraw(cells.state, `${now.state}`, () => badge(now.state));
    fill(cells.created, ago(now.created));
    say(cells.took, FINAL.has(now.state) && now.attempts.length ? span(between(now.attempts.at(-1).begun, now.finished || now.updated)) : "–");
    redraw(cells.note, JSON.stringify([now.error, now.warnings.length]), () => note(now));
  }};
}

function note(job) {
  if (job.error) return [h("code", {}, job.error.code), h("span", {class: "sub"}, job.error.message)];
  if (job.warnings.length) return h("span", {class: "badge warn"}, `${job.warnings.length} warning${job.warnings.length > 1 ? "s" : ""}`);
  return "";
}
