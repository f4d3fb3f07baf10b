// What came of a job: to play, to take home, and side by side with what went in.

import {call, message, part} from "./api.js";
import {fill, h, panel, toast} from "./dom.js";
import {bitrate, bytes, leaf, span} from "./format.js";

const SOUND = /\.(m4a|mp3|aac|ogg|opus|flac|wav)$/i;
const SEEN = /\.(mp4|m4v|mov|webm|mkv)$/i;

export function outputList(job) {
  return panel("Outputs", {}, h("div", {class: "body"}, job.outputs.map((output, number) => outputBox(job, output, number))));
}

function outputBox(job, output, number) {
  const name = leaf(output.uri);
  const stage = h("div");
  const link = () => call("POST", `/v1/jobs/${part(job.id)}/outputs/${number}/link`);
  const play = () => show(stage, name, link);
  const reachable = output.uri.startsWith("file:") || output.uri.startsWith("s3:");
  const playable = output.uri.startsWith("file:") && (SOUND.test(name) || SEEN.test(name));
  return h("div", {}, h("div", {class: "row"}, h("strong", {class: "name"}, name), h("span", {class: "note"}, bytes(output.bytes)),
    playable && h("button", {class: "small main", type: "button", on: {click: play}}, "Play"),
    reachable && h("button", {class: "small", type: "button", on: {click: () => download(link, name)}}, "Download")),
  h("p", {class: "hint mono"}, output.uri), stage);
}

/** A player. An address lasts some minutes: once it has expired, a new one goes on where it was. */
async function show(stage, name, link) {
  try {
    let {url, expires} = await link();
    const player = h(SOUND.test(name) ? "audio" : "video", {controls: true, src: url, "aria-label": name, preload: "metadata"});
    player.addEventListener("error", async () => {
      if (Date.now() < Date.parse(expires)) {
        fill(stage, h("p", {class: "fault", role: "alert"}, "This browser cannot play it, or the file is gone. Try to download it."));
        return;
      }
      const at = player.currentTime;
      ({url, expires} = await link());
      player.src = url;
      player.currentTime = at;
      player.play();
    });
    fill(stage, player);
    player.focus();
    player.play().catch(() => {});  // not allowed before a gesture: the controls are there
  } catch (error) {
    toast(message(error), "bad");
  }
}

async function download(link, name) {
  try {
    const {url} = await link();
    const anchor = h("a", {href: url, download: name});
    document.body.append(anchor);
    anchor.click();
    anchor.remove();
  } catch (error) {
    toast(message(error), "bad");
  }
}

// --- probes ------------------------------------------------------------------------------------------------------

/** `source` is a probe's summary or null, `outputs` are {uri, probe}. */
export function probeTable(source, outputs) {
  const columns = [...(source ? [["Source", source]] : []), ...outputs.map(output => [leaf(output.uri), output.probe || {}])];
  const rows = [
    ["Container", probe => probe.container], ["Duration", probe => probe.duration_seconds && span(probe.duration_seconds)],
    ["Bit rate", probe => probe.bit_rate && bitrate(probe.bit_rate)],
    ["Video", probe => streams(probe, "video").map(picture)], ["Audio", probe => streams(probe, "audio").map(sound)],
    ["Captions", probe => streams(probe, "subtitle").map(stream => [stream.codec, spoken(stream)].filter(Boolean).join(", "))],
  ].map(([name, of]) => [name, columns.map(([, probe]) => of(probe))]).filter(([, values]) => values.some(value => Array.isArray(value) ? value.length : value));
  return h("div", {class: "scroll"}, h("table", {class: "probe"}, h("caption", {class: "unseen"}, "What source and outputs hold"),
    h("thead", {}, h("tr", {}, h("th", {scope: "col"}, h("span", {class: "unseen"}, "Property")), columns.map(([name]) => h("th", {scope: "col"}, name)))),
    h("tbody", {}, rows.map(([name, values]) => h("tr", {}, h("th", {scope: "row"}, name),
      values.map(value => h("td", {}, Array.isArray(value) ? value.map(line => h("div", {}, line)) : value || "–")))))));
}

const streams = (probe, kind) => (probe.streams || []).filter(stream => (stream.kind || stream.type) === kind);

function picture(stream) {
  const size = stream.width && `${stream.width} × ${stream.height}`;
  const rate = stream.frame_rate && `${Number(stream.frame_rate).toFixed(2).replace(/\.?0+$/, "")} fps`;
  return [stream.codec, stream.profile, size, rate, stream.pixel_format, stream.color_transfer && stream.hdr ? "HDR" : null, stream.rotation ? `turned ${stream.rotation}°` : null].filter(Boolean).join(", ");
}

function sound(stream) {
  return [stream.codec, stream.channels && (stream.channels === 2 ? "stereo" : stream.channels === 1 ? "mono" : `${stream.channels} channels`),
    stream.sample_rate && `${stream.sample_rate / 1000} kHz`, spoken(stream)].filter(Boolean).join(", ");
}

const spoken = stream => stream.language === "und" ? null : stream.language;
