// What an operator looks at first: what waits, what runs, what fails, who works.

import {call, get, message, part, query, session} from "./api.js";
import {ask, fill, h, Keyed, panel, redraw, say, table, toast} from "./dom.js";
import {ago, badge, bytes, count, leaf, percent, progressBar, RUNNING, span, times} from "./format.js";
import {Throughput} from "./plot.js";
import {poll} from "./poll.js";
import {stats} from "./stats.js";

const RUNNING_MS = 2000;
const RUNNING_MAX = 20;
const WORKERS_MS = 5000;
const WEBHOOKS_MS = 10000;
const DAY_MS = 86400e3;
const SLOW_SECONDS = 600;  // a job that waits longer deserves a look

export function overview(main, {signal}) {
  const tiles = h("dl", {class: "tiles"});
  const running = runningPanel(signal);
  const plot = new Throughput(signal);
  const errors = h("div");
  const operator = session.can("operate") && session.installation;
  const pause = operator && h("button", {type: "button", on: {click: () => document.dispatchEvent(new Event("nommerd:pause"))}}, "Pause");
  const shown = tileSet(tiles);

  fill(main, h("div", {class: "head"}, h("h1", {}, "Overview"), h("div", {class: "actions"}, pause,
    session.can("submit") && h("a", {class: "button main", href: "#/submit"}, "Submit a job"))),
  tiles, running,
  h("div", {class: "columns"}, panel("Last 24 hours", {note: plot.legend}, plot.element), panel("Errors by code, last 24 hours", {}, errors)),
  operator && workersPanel(signal), session.can("operate") && webhooksPanel(signal));

  stats.listen(({figures}) => {
    if (!figures) return;
    if (pause) pause.hidden = Boolean(figures.paused);
    shown(figures);
    plot.show(figures.throughput);
    redraw(errors, JSON.stringify(figures.errors), () => errorTable(figures.errors));
  }, signal);
}

function tileSet(parent) {
  const made = new Map();
  const tile = (title, value, small = "", mood = "", href = null) => {
    if (!made.has(title)) {
      const parts = {value: h("span"), small: h("small")};
      parts.element = h("div", {class: "tile"}, h("dt", {}, href ? h("a", {href}, title) : title), h("dd", {}, parts.value, parts.small));
      made.set(title, parts);
      parent.append(parts.element);
    }
    const parts = made.get(title);
    parts.element.className = `tile ${mood}`;
    say(parts.value, value);
    say(parts.small, small);
  };
  return figures => {
    const of = state => figures.states[state] || 0;
    const oldest = figures.oldest_pending_seconds;
    const waits = figures.paused ? "" : oldest > 6 * SLOW_SECONDS ? "alarm" : oldest > SLOW_SECONDS ? "care" : "";
    tile("Oldest pending", oldest === null ? "none" : span(oldest), `${count(of("PENDING"))} pending`, waits, "#/jobs?state=PENDING");
    if (figures.queue) {
      const {high, normal, low} = figures.queue;
      tile("Queue", count(high + normal + low), ["high", "normal", "low"].filter(name => figures.queue[name]).map(name => `${name} ${count(figures.queue[name])}`).join(" · "));
    }
    tile("Running", count(RUNNING.reduce((sum, state) => sum + of(state), 0)),
      RUNNING.filter(of).map(state => `${state.toLowerCase()} ${count(of(state))}`).join(" · "), "", `#/jobs?state=${RUNNING.join(",")}`);
    const sum = name => figures.throughput.reduce((total, hour) => total + hour[name], 0);
    tile("Finished, 24 h", count(sum("finished")), `${count(sum("failed"))} failed`, "", "#/jobs?state=FINISHED");
    if (figures.workers) {
      const {active, silent, slots, busy} = figures.workers;
      tile("Slots in use", `${count(busy)} of ${count(slots)}`, `${count(active)} ${active === 1 ? "worker" : "workers"}${silent ? `, ${count(silent)} silent` : ""}`,
        silent || (!active && of("PENDING")) ? "alarm" : "");
    }
    tile("Webhooks due", count(figures.webhooks.due), `${count(figures.webhooks.failing)} failing`, figures.webhooks.failing ? "care" : "");
    if (figures.dead_letters !== null) tile("Dead letters", count(figures.dead_letters), "", figures.dead_letters ? "alarm" : "");
  };
}

function errorTable(errors) {
  if (!errors.length) return h("p", {class: "none"}, "None.");
  const since = new Date(Date.now() - DAY_MS).toISOString().slice(0, 19) + "Z";
  return table("Errors of the last 24 hours by code", ["Code", ["Jobs", "num"]], h("tbody", {}, errors.map(({code, count: number}) =>
    h("tr", {}, h("th", {scope: "row"}, h("a", {href: `#/jobs${query({state: "ERROR", error_code: code, since})}`}, h("code", {}, code))),
      h("td", {class: "num"}, count(number))))));
}

// --- running jobs ------------------------------------------------------------------------------------------------

function runningPanel(signal) {
  const body = h("tbody");
  const none = h("p", {class: "none"}, "Nothing runs.");
  const more = h("span", {class: "note"});
  const rows = new Keyed(body, job => job.id, runningRow);
  const frame = table("Running jobs", ["Job", "State", ["Progress", "fit"], ["Speed", "num big"], ["Left", "num big"], ["Worker", "big"], ["Attempt", "num big"]], body);
  frame.hidden = true;
  poll(async () => {
    const page = await get(`/v1/jobs?state=${RUNNING.join(",")}&limit=${RUNNING_MAX}`, signal);
    rows.show(page.jobs);
    frame.hidden = !page.jobs.length;
    none.hidden = Boolean(page.jobs.length);
    say(more, page.next ? `the newest ${RUNNING_MAX}` : "");
  }, RUNNING_MS, signal);
  return panel("Running", {note: more}, frame, none);
}

function runningRow(job) {
  const bar = progressBar();
  const cells = {state: h("td", {class: "fit"}), speed: h("td", {class: "num big"}), left: h("td", {class: "num big"}), worker: h("td", {class: "big"}),
    attempt: h("td", {class: "num big"})};
  const element = h("tr", {}, h("th", {scope: "row"}, jobLink(job), h("span", {class: "sub"}, job.preset || job.pipeline)),
    cells.state, h("td", {}, bar.element), cells.speed, cells.left, cells.worker, cells.attempt);
  return {element, update(now) {
    bar.update(now);
    redraw(cells.state, `${now.state} ${now.stage}`, () => [badge(now.state), now.stage && h("span", {class: "sub"}, now.stage)]);
    say(cells.speed, times(now.speed));
    say(cells.left, now.eta_seconds === null ? "–" : span(now.eta_seconds));
    say(cells.worker, now.owner ? now.owner.worker : "–");
    say(cells.attempt, count(now.attempts.length || null));
  }};
}

export function jobLink(job) {
  return h("a", {class: "name", href: `#/jobs/${part(job.id)}`}, leaf(job.source));
}

// --- workers -----------------------------------------------------------------------------------------------------

function workersPanel(signal) {
  const body = h("tbody");
  const none = h("p", {class: "none"}, "No worker has reported.");
  const rows = new Keyed(body, worker => worker.name, workerRow);
  const frame = table("Workers", ["Worker", "State", "Heartbeat", ["Slots", "num big"], ["Jobs", "big"], ["Free disk", "num big"], ["Version", "big"], ""], body);
  frame.hidden = true;
  poll(async () => {
    const {workers} = await get("/v1/workers", signal);
    rows.show(workers);
    frame.hidden = !workers.length;
    none.hidden = Boolean(workers.length);
  }, WORKERS_MS, signal);
  return panel("Workers", {}, frame, none);
}

function workerRow(worker) {
  const cells = {state: h("td"), beat: h("td", {class: "fit"}), slots: h("td", {class: "num big"}), jobs: h("td", {class: "big"}),
    disk: h("td", {class: "num big"}), version: h("td", {class: "big"})};
  const drain = h("button", {class: "small", type: "button", "aria-label": `Drain ${worker.name}`, on: {click: () => drainIt(worker.name)}}, "Drain");
  const element = h("tr", {}, h("th", {scope: "row"}, h("span", {class: "name"}, worker.name), h("span", {class: "sub"}, worker.node)),
    cells.state, cells.beat, cells.slots, cells.jobs, cells.disk, cells.version, h("td", {}, drain));
  return {element, update(now) {
    redraw(cells.state, now.state, () => badge(now.state));
    fill(cells.beat, ago(now.reported));
    say(cells.slots, `${now.busy} of ${now.slots}`);
    redraw(cells.jobs, JSON.stringify(now.jobs), () => now.jobs.map(job => [job.project === session.who.project
      ? h("a", {class: "mono", href: `#/jobs/${part(job.id)}`, title: job.id}, job.id.slice(0, 8)) : h("span", {class: "mono note", title: job.project}, job.id.slice(0, 8)), " "]));
    say(cells.disk, now.disk ? `${bytes(now.disk.free_bytes)}, ${percent(now.disk.free_bytes / (now.disk.total_bytes || 1))}` : "–");
    say(cells.version, now.version);
    drain.hidden = now.state !== "ACTIVE";
  }};
}

async function drainIt(name) {
  if (!await ask(`Drain ${name}?`, "It finishes what it has begun, takes nothing new, and ends.", "Drain")) return;
  try {
    await call("POST", `/v1/workers/${part(name)}/drain`);
    toast(`${name} is draining.`);
  } catch (error) {
    toast(message(error), "bad");
  }
}

// --- webhooks ----------------------------------------------------------------------------------------------------

function webhooksPanel(signal) {
  const holder = h("div");
  poll(async () => {
    const told = await get("/v1/webhooks", signal);
    const behind = [...told.failing, ...told.disabled.map(one => ({...one, disabled: true}))];
    redraw(holder, JSON.stringify(behind), () => behind.length ? failingTable(behind) : h("p", {class: "none"}, "No delivery is failing."));
  }, WEBHOOKS_MS, signal);
  return panel("Webhooks that fail", {}, holder);
}

function failingTable(failing) {
  return table("Webhooks that fail", ["Job", "Receiver", ["Tries", "num"], "Next", ["Status", "big"], "Why"], h("tbody", {}, failing.map(one =>
    h("tr", {}, h("th", {scope: "row"}, h("a", {class: "mono", href: `#/jobs/${part(one.job)}`}, one.job.slice(0, 8))), h("td", {}, one.host),
      h("td", {class: "num"}, count(one.tries)), h("td", {class: "fit"}, one.disabled ? h("span", {class: "badge bad"}, "given up") : one.next_at ? whenNext(one.next_at) : "–"),
      h("td", {class: "big"}, one.status ?? "–"), h("td", {class: "say"}, one.why || "–")))));
}

function whenNext(text) {
  const seconds = (Date.parse(text) - Date.now()) / 1000;
  return seconds > 0 ? h("time", {datetime: text, title: text}, `in ${span(seconds)}`) : ago(text);
}
