// Jobs by hour, as bars: the failed ones on top of the finished.

import {fill, h, say} from "./dom.js";
import {count} from "./format.js";

const DARK = matchMedia("(prefers-color-scheme: dark)");
const CLOCK = new Intl.DateTimeFormat(undefined, {hour: "2-digit", minute: "2-digit"});
const HOUR = 3600;

export class Throughput {
  constructor(signal) {
    this.frame = h("div", {class: "plot", role: "img"});
    this.readout = h("span", {class: "note"});
    this.rows = h("tbody");
    this.element = h("div", {}, h("div", {class: "body"}, this.frame),
      h("details", {}, h("summary", {}, "As a table"),
        h("table", {}, h("thead", {}, h("tr", {}, ["Hour", "Finished", "Failed"].map((head, index) =>
          h("th", {scope: "col", class: index ? "num" : null}, head)))), this.rows)));
    this.legend = h("span", {class: "legend"}, h("span", {}, h("i"), "finished"), h("span", {}, h("i", {class: "failed"}), "failed"),
      this.readout);
    this.observer = new ResizeObserver(() => this.plot && this.plot.setSize(this.size()));
    this.observer.observe(this.frame);
    const recolour = () => this.draw();
    DARK.addEventListener("change", recolour);
    signal.addEventListener("abort", () => {
      DARK.removeEventListener("change", recolour);
      this.observer.disconnect();
      if (this.plot) this.plot.destroy();
    }, {once: true});
  }

  size() {
    return {width: Math.max(200, this.frame.clientWidth), height: 190};
  }

  show(hours) {
    const sign = JSON.stringify(hours);
    if (sign === this.sign) return;
    this.sign = sign;
    this.hours = hours;
    const sum = name => hours.reduce((total, hour) => total + hour[name], 0);
    this.frame.setAttribute("aria-label", `${count(sum("finished"))} jobs finished and ${count(sum("failed"))} failed in 24 hours`);
    fill(this.rows, hours.map(hour => h("tr", {}, h("th", {scope: "row"}, h("time", {datetime: hour.hour, title: hour.hour},
      CLOCK.format(new Date(hour.hour)))), h("td", {class: "num"}, count(hour.finished)), h("td", {class: "num"}, count(hour.failed)))));
    this.draw();
  }

  draw() {
    if (!this.hours || !window.uPlot) return;
    if (this.plot) this.plot.destroy();
    const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const axis = {stroke: colour("--soft"), grid: {stroke: colour("--faint"), width: 1}, ticks: {stroke: colour("--line"), width: 1},
      font: "11px system-ui, sans-serif"};
    const bars = window.uPlot.paths.bars({size: [0.7, 26]});
    const series = (label, name) => ({label, stroke: colour(name), fill: colour(name), width: 0, paths: bars, points: {show: false}});
    const times = this.hours.map(hour => Date.parse(hour.hour) / 1000);
    const finished = this.hours.map(hour => hour.finished);
    const all = this.hours.map(hour => hour.finished + hour.failed);
    this.plot = new window.uPlot({
      ...this.size(), legend: {show: false}, cursor: {y: false, points: {show: false}, drag: {x: false, y: false}},
      scales: {x: {range: (_, from, to) => [from - HOUR / 2, to + HOUR / 2]}, y: {range: (_, low, high) => [0, Math.max(4, high * 1.08)]}},
      axes: [{...axis, grid: {show: false}, space: 66, values: (_, marks) => marks.map(mark => CLOCK.format(new Date(mark * 1000)))},
        {...axis, size: 44, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5]}],
      series: [{}, series("failed", "--bad"), series("finished", "--good")],
      hooks: {setCursor: [plot => {
        const hour = this.hours[plot.cursor.idx];
        say(this.readout, hour && plot.cursor.left >= 0
          ? `${CLOCK.format(new Date(hour.hour))}: ${count(hour.finished)} finished, ${count(hour.failed)} failed` : "");
      }]},
    }, [times, all, finished], this.frame);
  }
}
