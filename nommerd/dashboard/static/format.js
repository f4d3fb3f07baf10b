// Numbers, sizes and times as people read them.

import {h} from "./dom.js";

const WHOLE = new Intl.NumberFormat();
const FINE = new Intl.NumberFormat(undefined, {maximumFractionDigits: 1});
const MOMENT = new Intl.DateTimeFormat(undefined, {dateStyle: "medium", timeStyle: "medium"});
const CLOCK = new Intl.DateTimeFormat(undefined, {hour: "2-digit", minute: "2-digit", second: "2-digit"});

export const FINAL = new Set(["FINISHED", "ERROR", "ABANDONED", "CANCELLED"]);
export const RUNNING = ["DOWNLOADING", "ENCODING", "UPLOADING"];
const LOOKS = {FINISHED: "good", ERROR: "bad", ABANDONED: "bad", CANCELLED: "", PENDING: "", WAITING: "run", ACTIVE: "good",
  DRAINING: "warn", SILENT: "bad", TERMINATED: ""};

export const count = number => number === null || number === undefined ? "–" : WHOLE.format(number);
export const percent = part => `${Math.floor(part * 100)} %`;
/** An encode's speed, as ffmpeg tells it. */
export const times = speed => speed === null || speed === undefined ? "–" : `${FINE.format(speed)}×`;
export const look = state => LOOKS[state] ?? (RUNNING.includes(state) ? "run" : "");

export function badge(state) {
  return h("span", {class: `badge ${look(state)}`}, state.toLowerCase());
}

export function bytes(number) {
  if (number === null || number === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; number >= 1000 && unit < units.length - 1; unit++) number /= 1000;
  return `${unit && number < 100 ? FINE.format(number) : WHOLE.format(Math.round(number))} ${units[unit]}`;
}

export function bitrate(number) {
  if (!number) return "–";
  return number >= 1e6 ? `${FINE.format(number / 1e6)} Mbit/s` : `${WHOLE.format(Math.round(number / 1000))} kbit/s`;
}

/** Seconds in at most two units. */
export function span(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${seconds < 10 && seconds % 1 ? FINE.format(seconds) : whole} s`;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => whole >= size);
  const [[name, size], [small, part]] = [units[first], units[first + 1]];
  const rest = Math.floor(whole % size / part);
  return `${Math.floor(whole / size)} ${name}${rest ? ` ${rest} ${small}` : ""}`;
}

export const between = (from, to) => (Date.parse(to) - Date.parse(from)) / 1000;

function utc(at) {
  return `${at.toISOString().replace("T", " ").slice(0, 19)} UTC`;
}

/** A moment in the local zone; UTC in its title. Today's without the date. */
export function moment(text) {
  if (!text) return "–";
  const at = new Date(text);
  const today = at.toDateString() === new Date().toDateString();
  return h("time", {datetime: text, title: utc(at)}, today ? CLOCK.format(at) : MOMENT.format(at));
}

/** How long ago, with the moment in its title. */
export function ago(text) {
  if (!text) return "–";
  const at = new Date(text);
  const seconds = (Date.now() - at) / 1000;
  return h("time", {datetime: text, title: `${MOMENT.format(at)} (${utc(at)})`}, seconds < 2 ? "now" : `${span(seconds)} ago`);
}

/** The last part of a URI, as people know it. */
export function leaf(uri) {
  const name = uri.replace(/\/+$/, "").split("/").pop() || uri;
  if (uri.startsWith("s3:")) return name;
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

/** A bar with its percentage; update(job). */
export function progressBar() {
  const bar = h("progress", {max: 1, value: 0});
  const text = h("span");
  return {element: h("span", {class: "bar"}, bar, text), update(job) {
    const done = job.state === "FINISHED" ? 1 : job.progress;
    bar.value = done;
    bar.className = job.state === "FINISHED" ? "good" : job.error && FINAL.has(job.state) ? "bad" : "";
    bar.setAttribute("aria-label", `Progress of ${leaf(job.source)}`);
    text.textContent = percent(done);
  }};
}
