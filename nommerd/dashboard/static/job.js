// One job, live: what it is, how it went, what came of it.

import {ApiError, call, get, message, noted, part, send, session} from "./api.js";
import {ask, copier, fill, h, panel, redraw, refusal, table, toast} from "./dom.js";
import {ago, badge, bytes, count, FINAL, leaf, moment, progressBar, span, times} from "./format.js";
import {jobLog} from "./log.js";
import {outputList, probeTable} from "./outputs.js";
import {poll, readEvents} from "./poll.js";

const AGAIN_MS = 1000;
const FINAL_MS = 5000;
const WAIT_SECONDS = 20;

export function jobPage(main, {parts: [id], signal}) {
  const place = name => h("div", {"data-part": name});
  const places = {head: place("head"), problem: place("problem"), outputs: place("outputs"), facts: place("facts"), timeline: place("timeline"),
    probes: place("probes"), log: place("log"), webhook: place("webhook")};
  const bar = progressBar();
  const state = h("span", {role: "status"});
  const actions = h("div", {class: "actions"});
  const stageText = h("span", {class: "note"});
  const log = session.can("operate") ? jobLog(id, places.log, signal, told => {
    probed = told;
    probes();
  }) : null;
  let known = null;
  let probed = {source: null, outputs: []};  // by the newest attempt that looked

  const probes = () => {
    const told = {source: probed.source, outputs: known.outputs.length ? known.outputs : probed.outputs};
    redraw(places.probes, JSON.stringify(told), () => told.source || told.outputs.length ? probePanel(told) : null);
  };

  fill(places.head, h("p", {class: "none"}, "Looking…"));
  fill(main, places.head, places.problem, places.outputs, h("div", {class: "columns"}, places.facts, places.timeline), places.probes, places.webhook, places.log);

  const show = job => {
    if (known && known.event_seq > job.event_seq) return;
    const fresh = !known;
    const moved = fresh || known.event_seq !== job.event_seq || known.attempts.length !== job.attempts.length;
    known = job;
    if (fresh) {
      document.title = `${leaf(job.source)} – nommerd`;
      fill(places.head, h("div", {class: "head"}, h("h1", {class: "name"}, leaf(job.source)), state, actions),
        h("div", {class: "live"}, bar.element, stageText));
    }
    redraw(state, job.state, () => badge(job.state));
    bar.update(job);
    redraw(stageText, stageLine(job), () => stageLine(job));
    redraw(actions, `${job.state} ${Boolean(job.webhook)}`, () => buttons(job, update => {
      show(update);
      now();
    }));
    redraw(places.problem, JSON.stringify([job.error, job.warnings]), () => problems(job));
    redraw(places.facts, `${job.id}${JSON.stringify(job.labels)}`, () => factsPanel(job));
    redraw(places.timeline, JSON.stringify([job.attempts, job.events]), () => timeline(job));
    redraw(places.outputs, JSON.stringify(job.outputs), () => job.outputs.length ? outputList(job) : null);
    redraw(places.webhook, JSON.stringify(job.webhook ?? null), () => deliveries(job));
    probes();
    if (log && moved) log(job);
  };
  const now = follow(id, show, signal, error => fill(main, refusal(error)));
}

/** Events while they come; where the server gives none, requests that wait. A final job may be retried by somebody else: it is
 * asked for now and then. */
function follow(id, show, signal, give) {
  const path = `/v1/jobs/${part(id)}`;
  let seen = null;
  const took = job => {
    seen = job;
    if (!signal.aborted) show(job);
  };
  return poll(async () => {
    try {
      took(await get(path, signal));
    } catch (error) {
      if (!seen && error instanceof ApiError && [403, 404].includes(error.status)) give(error);
      throw error;
    }
    if (FINAL.has(seen.state)) return FINAL_MS;
    if (!await stream(path, seen.event_seq, took, signal)) took(await get(`${path}?wait=${WAIT_SECONDS}&after=${seen.event_seq}`, signal));
    return FINAL.has(seen.state) ? FINAL_MS : AGAIN_MS;
  }, AGAIN_MS, signal);
}

/** Reads events until they end; false where there are none to be had. */
async function stream(path, after, took, signal) {
  const mine = new AbortController();
  const stop = () => mine.abort();
  const hide = () => document.hidden && stop();
  signal.addEventListener("abort", stop);
  document.addEventListener("visibilitychange", hide);
  try {
    const answer = await send("GET", `${path}/events`, {signal: mine.signal, headers: {Accept: "text/event-stream", "Last-Event-ID": String(after)}});
    await readEvents(answer, (_, data) => took(JSON.parse(data)));
    return true;
  } catch (error) {
    return !(noted(error) instanceof ApiError);  // it broke off: look again
  } finally {
    signal.removeEventListener("abort", stop);
    document.removeEventListener("visibilitychange", hide);
  }
}

function stageLine(job) {
  if (FINAL.has(job.state)) return job.attempts.length ? `${count(job.attempts.length)} ${job.attempts.length > 1 ? "attempts" : "attempt"}` : "never begun";
  if (job.state === "PENDING") return job.attempts.length ? "waits for another attempt" : "waits for a worker";
  return [job.stage, job.owner && `on ${job.owner.worker}`, job.speed !== null && times(job.speed), job.eta_seconds !== null && `${span(job.eta_seconds)} left`].filter(Boolean).join(" · ");
}

function buttons(job, show) {
  const act = (text, path, done, question = null, kind = null) => h("button", {type: "button", class: kind, on: {click: async event => {
    const button = event.currentTarget;
    if (question && !await ask(...question)) return;
    button.disabled = true;
    try {
      const answer = await call("POST", `/v1/jobs/${part(job.id)}/${path}`);
      toast(done);
      show(answer);
    } catch (error) {
      toast(message(error), "bad");
    }
    button.disabled = false;
  }}}, text);
  const final = FINAL.has(job.state);
  return [
    session.can("submit") && !final && act("Cancel", "cancel", "Asked to stop.", ["Cancel this job?", "What was encoded so far is thrown away. It can be retried later.", "Cancel the job"], "danger"),
    session.can("submit") && final && job.state !== "FINISHED" && act("Retry", "retry", "Queued again, with the same recipe.", null, "main"),
    session.can("operate") && job.webhook && act("Replay webhooks", "webhooks/replay", "Events will be delivered again."),
    session.can("submit") && h("a", {class: "button", href: `#/submit?like=${part(job.id)}`}, "Submit another like it"),
  ];
}

function problems(job) {
  const box = (problem, kind) => h("div", {class: `box ${kind}`}, h("p", {}, h("strong", {}, problem.message), " ", h("code", {class: "note"}, problem.code)),
    problem.hint && h("p", {}, problem.hint),
    h("p", {class: "note"}, [problem.stage && `stage ${problem.stage}`, problem.attempt && `attempt ${problem.attempt}`, problem.retryable && "retried by itself while attempts last"].filter(Boolean).join(" · ")));
  return [job.error && box(job.error, "bad"), job.warnings.map(warning => box(warning, "warn"))];
}

function factsPanel(job) {
  const list = h("dl", {class: "facts"});
  const fact = (name, ...value) => list.append(h("dt", {}, name), h("dd", {}, value));
  fact("Job", h("span", {class: "mono"}, job.id), " ", copier(job.id));
  fact("Source", h("span", {class: "mono name"}, job.source));
  for (const [name, items] of Object.entries(job.inputs)) fact(`Input ${name}`, items.map(item => h("div", {class: "mono"}, item.uri, item.language ? ` (${item.language})` : "")));
  fact("Destination", h("span", {class: "mono name"}, job.dest));
  if (job.preset) fact("Preset", session.can("read") ? h("a", {href: `#/presets/${part(job.preset)}`}, job.preset) : job.preset);
  fact("Pipeline", h("a", {href: `#/pipelines/${part(job.pipeline)}`}, job.pipeline), " ", h("span", {class: "note mono", title: `recipe ${job.recipe}`}, job.recipe.slice(0, 12)));
  const params = Object.entries(job.params);
  if (params.length) fact("Parameters", params.map(([name, value]) => h("span", {class: "chip"}, `${name} = ${value}`)));
  fact("Priority", job.priority);
  const labels = Object.entries(job.labels);
  if (labels.length) fact("Labels", labels.map(([name, value]) => h("span", {class: "chip"}, `${name}=${value}`)));
  fact("Created", moment(job.created));
  return panel("Job", {}, h("div", {class: "body"}, list));
}

function timeline(job) {
  const entry = (kind, ...content) => h("li", {class: kind}, h("div", {}, content));
  const attempts = job.attempts.map((attempt, index) => {
    const kind = !attempt.ended ? "run" : attempt.why && !/finished/i.test(attempt.why) ? "bad" : "good";
    const took = attempt.ended ? span((Date.parse(attempt.ended) - Date.parse(attempt.begun)) / 1000) : "running";
    return entry(kind, h("strong", {}, `Attempt ${attempt.number ?? index + 1}`), ` on ${attempt.worker}`, attempt.node && attempt.node !== attempt.worker ? ` (${attempt.node})` : "",
      h("div", {class: "note"}, moment(attempt.begun), ` · ${took}`, attempt.why ? ` · ${attempt.why}` : ""));
  });
  const changes = job.events.map(event => entry(event.state === "FINISHED" ? "good" : event.state === "ERROR" ? "bad" : "",
    badge(event.state), " ", h("span", {class: "note"}, moment(event.at), event.attempt > 1 ? ` · attempt ${event.attempt}` : "")));
  return panel("Timeline", {}, attempts.length || changes.length ? h("div", {class: "body"}, h("ol", {class: "timeline", "aria-label": "Attempts"}, attempts),
    changes.length ? [h("h3", {}, "States"), h("ol", {class: "timeline", "aria-label": "Changes of state"}, changes)] : null) : h("p", {class: "none"}, "Not begun yet."));
}

function probePanel({source, outputs}) {
  return panel("Source and outputs", {note: source ? null : h("span", {class: "note"}, "what the outputs hold")}, probeTable(source, outputs));
}

function deliveries(job) {
  const hook = job.webhook;
  if (!hook) return null;
  const list = hook.deliveries || [];
  const told = hook.disabled ? "The receiver said 410: nothing more is sent." : hook.next_at ? ["Next try ", moment(hook.next_at), `, after ${hook.tries}.`] : "All accepted.";
  return panel("Webhooks", {note: h("span", {class: "note"}, told)}, list.length ? table("Deliveries", [["Event", "num"], "Sent", "Status", "Why"], h("tbody", {}, list.map(one =>
    h("tr", {}, h("th", {scope: "row", class: "num"}, one.seq), h("td", {class: "fit"}, moment(one.at)),
      h("td", {}, h("span", {class: `badge ${one.status >= 200 && one.status < 300 ? "good" : "bad"}`}, one.status ?? "no answer")), h("td", {class: "say"}, one.why || "–")))))
    : h("p", {class: "none"}, "Nothing was sent yet."));
}
