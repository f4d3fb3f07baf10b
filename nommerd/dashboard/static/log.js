// What each attempt of a job ran: its commands, to copy, and the end of what they said.

import {get, message, part} from "./api.js";
import {copier, fill, h, panel} from "./dom.js";
import {FINAL, moment, span} from "./format.js";
import {pause} from "./poll.js";

const SOON_MS = 1000;
const PLAIN = /^[A-Za-z0-9_\-+=:,.\/@%]+$/;

/** A command as a shell takes it. */
export function quoted(argv) {
  return argv.map(word => PLAIN.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`).join(" ");
}

/** Shows the log in `place`; the returned function asks for it anew. onProbes gets the newest {source, outputs}. */
export function jobLog(id, place, signal, onProbes) {
  const open = new Set();
  let turn = 0;
  const show = async (job, tries = 3) => {
    const mine = ++turn;
    try {
      const log = await get(`/v1/jobs/${part(id)}/log`, signal);
      if (mine !== turn) return;
      const probed = log.attempts.findLast(attempt => attempt.source);
      if (probed) onProbes(probed);
      fill(place, log.attempts.length ? panel("Commands", {}, log.attempts.map((attempt, index) => attemptLog(attempt, index === log.attempts.length - 1, open))) : null);
      const last = log.attempts.at(-1);
      if (tries && FINAL.has(job.state) && last && !last.ended) {  // the record was quicker
        await pause(SOON_MS, signal);
        if (mine === turn && !signal.aborted) await show(job, tries - 1);
      }
    } catch (error) {
      if (signal.aborted || mine !== turn || error.status === 401) return;
      fill(place, error.status === 404 ? null : h("div", {class: "box warn"}, `The log cannot be read: ${message(error)}`));
    }
  };
  return show;
}

function attemptLog(attempt, last, open) {
  const commands = attempt.stages.flatMap(stage => stage.commands);
  const key = `attempt ${attempt.number}`;
  const took = attempt.ended ? span((Date.parse(attempt.ended) - Date.parse(attempt.begun)) / 1000) : "running";
  const made = h("details", {open: last && !open.has(`-${key}`)},
    h("summary", {}, h("strong", {}, `Attempt ${attempt.number}`), ` on ${attempt.worker} · ${took}`, attempt.outcome ? ` · ${attempt.outcome}` : ""),
    h("div", {class: "inside"}, h("p", {class: "note"}, "Begun ", moment(attempt.begun), attempt.truncated ? ". The log was cut to its allowance." : "."),
      attempt.stages.map(stage => [h("h3", {}, stage.stage, h("span", {class: "note"}, ` ${stage.seconds === null ? "" : span(stage.seconds)}`)),
        stage.commands.map(command => commandBox(command, attempt.ended))]),
      commands.length ? null : h("p", {class: "note"}, "No command was run.")));
  made.addEventListener("toggle", () => made.open ? open.delete(`-${key}`) : open.add(`-${key}`));
  return made;
}

function commandBox(command, ended) {
  const text = quoted(command.argv);
  const failed = command.code !== 0 && command.code !== null;
  return h("div", {class: "command"}, h("div", {class: "row"}, h("span", {class: `badge ${failed ? "bad" : command.code === 0 ? "good" : "run"}`},
    command.code === null ? ended ? "no exit code" : "running" : `exit ${command.code}`), h("span", {class: "note"}, command.seconds === null ? "" : span(command.seconds)), copier(text)),
  h("pre", {tabindex: "0", "aria-label": "Command"}, text),
  command.stderr ? h("pre", {class: "stderr", tabindex: "0", "aria-label": "Standard error, its end"}, command.stderr) : null);
}
