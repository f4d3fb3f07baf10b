// The frame: who is signed in, which page is shown, and what concerns all pages (paused, out of reach).

import {call, message, session} from "./api.js";
import {ask, fill, h, redraw, refusal, toast} from "./dom.js";
import {moment} from "./format.js";
import {signIn} from "./signin.js";
import {stats} from "./stats.js";
import {overview} from "./overview.js";
import {jobList} from "./jobs.js";
import {jobPage} from "./job.js";
import {submitPage} from "./submit.js";
import {catalogPage, checkPage, recipePage} from "./catalog.js";

const PAGES = [
  {path: /^\/?$/, title: "Overview", show: overview, nav: "#/", scope: "read"},
  {path: /^\/jobs$/, title: "Jobs", show: jobList, nav: "#/jobs", scope: "read"},
  {path: /^\/jobs\/([^/]+)$/, title: "Job", show: jobPage, of: "#/jobs", scope: "read"},
  {path: /^\/submit$/, title: "Submit", show: submitPage, nav: "#/submit", scope: "submit"},
  {path: /^\/recipes$/, title: "Presets", show: catalogPage, nav: "#/recipes", scope: "read"},
  {path: /^\/(presets|pipelines)\/([^/]+)$/, title: "Presets", show: recipePage, of: "#/recipes", scope: "read"},
  {path: /^\/check$/, title: "Check YAML", show: checkPage, of: "#/recipes", scope: "admin"},
];

const main = document.getElementById("main");
const nav = document.getElementById("nav");
const who = document.getElementById("who");
const banner = document.getElementById("banner");
let page = new AbortController();  // of the page that is shown
let life = new AbortController();  // of the session

function show(first = false) {
  page.abort();
  page = new AbortController();
  if (!session.who) return;
  const [path, text = ""] = location.hash.replace(/^#/, "").split("?");
  const found = PAGES.find(one => one.path.test(path) && session.can(one.scope)) || PAGES.find(one => session.can(one.scope));
  if (!found) {
    fill(main, h("p", {class: "none"}, "This token may neither read nor submit."));
    return;
  }
  const parts = (found.path.exec(path) || []).slice(1).map(decodeSafely);
  const current = found.nav || found.of;
  for (const link of nav.children) {
    if (link.getAttribute("href") === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${found.title} – nommerd`;
  fill(main);
  found.show(main, {parts, query: new URLSearchParams(text), signal: page.signal});
  if (!first) {
    main.focus({preventScroll: true});
    scrollTo(0, 0);
  }
}

function decodeSafely(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function frame() {
  fill(nav, PAGES.filter(one => one.nav && session.can(one.scope)).map(one => h("a", {href: one.nav}, one.title)));
  fill(who, h("span", {class: "name big", title: `Scopes: ${session.who.scopes.join(", ")}`},
    [session.who.name, session.who.project].filter(Boolean).join(" · ")),
  h("button", {class: "small", type: "button", on: {click: () => signOut()}}, "Sign out"));
  nav.hidden = who.hidden = false;
}

function signOut(error = null) {
  page.abort();
  life.abort();
  session.token = session.who = null;
  nav.hidden = who.hidden = true;
  fill(banner);
  delete banner.dataset.sign;
  document.title = "nommerd";
  signIn(main, error, begin);
}

function begin(first = false) {
  life.abort();
  life = new AbortController();
  frame();
  if (session.can("read")) stats.start(life.signal);
  show(first);
}

async function resume() {
  try {
    await call("POST", "/v1/resume");
    toast("Resumed: workers take jobs again.");
    stats.now();
  } catch (error) {
    toast(message(error), "bad");
  }
}

export async function pauseAll() {
  if (!await ask("Pause this installation?", "Workers finish what they have begun and take nothing new. Jobs can still be submitted.", "Pause")) return;
  try {
    await call("POST", "/v1/pause");
    stats.now();
  } catch (error) {
    toast(message(error), "bad");
  }
}

stats.listen(({figures, error}) => {
  const paused = figures && figures.paused;
  const sign = JSON.stringify([error ? message(error) : null, paused]);
  redraw(banner, sign, () => [
    error && h("div", {class: "banner bad"}, `${message(error)} What is shown may be old.`),
    paused && h("div", {class: "banner"}, h("strong", {}, "Paused"),
      h("span", {}, "Workers take no jobs since ", moment(paused.since), paused.by ? `, by ${paused.by}.` : "."),
      session.can("operate") && session.installation && h("button", {class: "small", type: "button", on: {click: resume}}, "Resume")),
  ]);
});

session.onRefused = error => {
  if (session.token) signOut(error);
};
addEventListener("hashchange", () => show());
document.getElementById("skip").addEventListener("click", event => {
  event.preventDefault();  // the hash says which page is shown
  main.focus();
});

async function boot() {
  if (!session.token) return signOut();
  try {
    session.who = await call("GET", "/v1/token");
    begin(true);
  } catch (error) {
    if (error.status === 401) return;
    fill(main, refusal(error), h("button", {type: "button", on: {click: boot}}, "Try again"));
  }
}

document.addEventListener("nommerd:pause", () => pauseAll());
boot();
