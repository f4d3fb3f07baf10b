// Hand in a job: the parameters' fields come from the pipeline's own declarations. "Explain" shows what would run.

import {ApiError, call, get, part, session} from "./api.js";
import {copier, fill, h, panel, refusal, toast} from "./dom.js";
import {quoted} from "./log.js";

export async function submitPage(main, {query, signal}) {
  const said = h("div");
  const explained = h("div", {"aria-live": "polite"});
  const form = h("form", {novalidate: true});
  fill(main, h("div", {class: "head"}, h("h1", {}, "Submit a job")), said, form, explained);
  fill(form, h("p", {class: "none"}, "Looking for presets…"));
  let recipes = null;
  let like = null;
  try {
    if (session.can("read")) {
      const [{presets}, {pipelines}, model] = await Promise.all([get("/v1/presets", signal), get("/v1/pipelines", signal),
        query.get("like") ? get(`/v1/jobs/${part(query.get("like"))}`, signal) : null]);
      recipes = {presets, pipelines};
      like = model;
    }
  } catch (error) {
    if (signal.aborted) return;
    fill(said, refusal(error));
  }
  if (!signal.aborted) new Form(form, said, explained, recipes, like || fromQuery(query)).draw();
}

const fromQuery = query => ({preset: query.get("preset"), pipeline: query.get("pipeline")});

class Form {
  constructor(form, said, explained, recipes, like) {
    Object.assign(this, {form, said, explained, recipes, like, key: newKey()});
  }

  draw() {
    const like = this.like;
    const input = (id, value, more = {}) => h("input", {id, value: value || "", autocomplete: "off", spellcheck: "false", ...more});
    this.source = input("source", like.source, {required: true, placeholder: "file:///media/in.mov, https://… or s3://…"});
    this.dest = input("dest", "", {required: true, placeholder: "file:///media/out.mp4"});
    this.recipe = this.recipes ? h("select", {id: "recipe", on: {change: () => this.drawParams()}},
      h("optgroup", {label: "Presets"}, this.recipes.presets.map(one => h("option", {value: `preset ${one.name}`}, one.name))),
      h("optgroup", {label: "Pipelines"}, this.recipes.pipelines.map(one => h("option", {value: `pipeline ${one.name}`}, one.name))))
      : input("recipe", "", {placeholder: "a preset's name"});
    const wanted = like.preset ? `preset ${like.preset}` : like.pipeline ? `pipeline ${like.pipeline}` : "";
    if (this.recipes && [...this.recipe.options].some(option => option.value === wanted)) this.recipe.value = wanted;
    this.params = h("div");
    this.about = h("p", {class: "hint", id: "about"});
    this.priority = choose("priority", [["normal", "Normal"], ["high", "High"], ["low", "Low"]], like.priority);
    this.damage = choose("on_damage", [["", "As the pipeline says"], ["tolerate", "Tolerate: a warning"], ["fail", "Fail"]]);
    this.overwrite = h("input", {id: "overwrite", type: "checkbox"});
    this.notify = input("notify_url", "", {type: "url", placeholder: "https://…"});
    this.labels = h("textarea", {id: "labels", rows: 2, spellcheck: "false", placeholder: "name=value, one a line",
      value: Object.entries(like.labels || {}).map(([name, value]) => `${name}=${value}`).join("\n")});
    this.submit = h("button", {class: "main", type: "submit"}, "Submit");
    this.explain = h("button", {type: "button", on: {click: () => this.send(true)}}, "Explain");
    this.form.addEventListener("submit", event => {
      event.preventDefault();
      this.send(false);
    });
    this.form.addEventListener("input", () => this.key = newKey());
    fill(this.form, panel("Media", {}, h("div", {class: "body fields"}, field("Source", this.source, {wide: true}), field("Destination", this.dest,
      {wide: true, hint: "End it with / where the pipeline makes several files."}), checkField("Replace what is there", this.overwrite))),
    panel("Recipe", {}, h("div", {class: "body"}, h("div", {class: "fields"}, field(this.recipes ? "Preset or pipeline" : "Preset", this.recipe)), this.about, this.params)),
    panel("Options", {}, h("div", {class: "body fields"}, field("Priority", this.priority), field("Damage in the source", this.damage), field("Webhook to", this.notify),
      field("Labels", this.labels, {wide: true}))),
    h("div", {class: "row"}, this.submit, this.explain));
    this.drawParams();
  }

  chosen() {
    const [kind, ...name] = this.recipes ? this.recipe.value.split(" ") : ["preset", this.recipe.value.trim()];
    return {kind, name: name.join(" ")};
  }

  drawParams() {
    this.fields = new Map();
    this.inputs = new Map();
    if (!this.recipes) return;
    const {kind, name} = this.chosen();
    const preset = kind === "preset" ? this.recipes.presets.find(one => one.name === name) : null;
    const pipeline = this.recipes.pipelines.find(one => one.name === (preset ? preset.pipeline : name));
    this.about.textContent = (preset || pipeline || {}).description || "";
    const given = (this.like.preset || this.like.pipeline) === name ? this.like.params || {} : {};
    const declared = Object.entries((pipeline && pipeline.params) || {});
    const files = Object.entries((pipeline && pipeline.inputs) || {}).map(([input, spec]) => {
      const made = h("textarea", {id: `input-${input}`, rows: 1, spellcheck: "false", placeholder: spec.default || ""});
      this.inputs.set(input, made);
      return field(`Input ${input}`, made, {wide: true, hint: [spec.type, spec.many ? "several, one address a line" : "an address"].filter(Boolean).join(", ")});
    });
    fill(this.params, declared.length || files.length ? h("div", {class: "fields stack"}, files, declared.map(([param, spec]) => {
      const standard = preset && param in (preset.params || {}) ? preset.params[param] : spec.default;
      const made = paramInput(param, spec, standard, given[param]);
      this.fields.set(param, {input: made, spec});
      return field(param, made, {hint: paramHint(spec)});
    })) : null);
  }

  body() {
    const {kind, name} = this.chosen();
    const params = {};
    for (const [param, {input, spec}] of this.fields) if (input.value !== "") params[param] = typed(input.value, spec.type);
    const inputs = {};
    for (const [input, area] of this.inputs) if (area.value.trim()) inputs[input] = area.value.trim().split(/\s+/).map(uri => ({uri}));
    const labels = {};
    for (const line of this.labels.value.split("\n").filter(text => text.trim())) {
      const [label, ...value] = line.split("=");
      labels[label.trim()] = value.join("=").trim();
    }
    const fields = {source: this.source.value.trim(), dest: this.dest.value.trim(), [kind]: name, params, labels, inputs: this.inputs.size ? inputs : undefined, priority: this.priority.value,
      overwrite: this.overwrite.checked || undefined, on_damage: this.damage.value || undefined, notify_url: this.notify.value.trim() || undefined};
    return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
  }

  async send(dry) {
    this.clear();
    const body = this.body();
    this.submit.disabled = this.explain.disabled = true;
    try {
      if (dry) {
        if (!body.dest) delete body.dest;
        delete body.priority;
        fill(this.explained, explanation(await call("POST", "/v1/explain", {body})));
        this.explained.scrollIntoView({block: "nearest"});
      } else {
        const job = await call("POST", "/v1/jobs", {body, headers: {"Idempotency-Key": this.key}});
        toast("Submitted.");
        if (session.can("read")) location.hash = `#/jobs/${part(job.id)}`;
        else fill(this.said, h("div", {class: "box good"}, h("p", {}, "Submitted as ", h("code", {}, job.id))));
        this.key = newKey();
      }
    } catch (error) {
      this.refuse(error);
    }
    this.submit.disabled = this.explain.disabled = false;
  }

  clear() {
    fill(this.said);
    fill(this.explained);
    for (const fault of this.form.querySelectorAll(".fault")) fault.remove();
    for (const input of this.form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  }

  /** Each fault beside the field that it names; the others above. */
  refuse(error) {
    if (!(error instanceof ApiError)) {
      fill(this.said, refusal(error));
      return;
    }
    const rest = [];
    let first = null;
    for (const fault of error.faults) {
      const input = this.inputOf(fault.place);
      if (!input) {
        rest.push(fault);
        continue;
      }
      first = first || input;
      input.setAttribute("aria-invalid", "true");
      input.after(h("p", {class: "fault", role: "alert"}, `${fault.message} ${fault.hint}`));
    }
    if (rest.length || !first) fill(this.said, refusal(error, rest));
    (first || this.submit).focus();
    if (!first) this.said.scrollIntoView({block: "nearest"});
  }

  inputOf(place) {
    const [head, name, inner] = place.split(".");
    if (head !== "body") return null;
    if (name === "params" && this.fields.has(inner)) return this.fields.get(inner).input;
    if (name === "inputs" && this.inputs.has(inner)) return this.inputs.get(inner);
    return {source: this.source, dest: this.dest, preset: this.recipe, pipeline: this.recipe, labels: this.labels, priority: this.priority,
      notify_url: this.notify, on_damage: this.damage}[name] || null;
  }
}

function field(name, input, {wide = false, hint = ""} = {}) {
  const told = hint ? h("p", {class: "hint", id: `${input.id}-hint`}, hint) : null;
  if (told) input.setAttribute("aria-describedby", told.id);
  return h("div", {class: wide ? "wide" : null}, h("label", {for: input.id}, name), input, told);
}

const checkField = (name, input) => h("div", {class: "check"}, h("label", {for: input.id}, input, name));

function choose(id, options, value) {
  const made = h("select", {id}, options.map(([key, text]) => h("option", {value: key}, text)));
  if (value) made.value = value;
  return made;
}

function paramInput(name, spec, standard, given) {
  const id = `param-${name}`;
  const shown = standard === null || standard === undefined ? "" : String(standard);
  const options = spec.type === "boolean" ? ["true", "false"] : spec.choices || [];
  if (options.length) return choose(id, [["", shown ? `default: ${shown}` : "none"], ...options.map(one => [String(one), String(one)])], given === undefined ? "" : String(given));
  const number = spec.type === "integer" || spec.type === "number";
  return h("input", {id, value: given === undefined ? "" : String(given), placeholder: shown, type: number ? "number" : "text", autocomplete: "off", spellcheck: "false",
    step: spec.type === "integer" ? 1 : number ? "any" : null, min: spec.min, max: spec.max});
}

const EXAMPLES = {bitrate: "like 2500k or 5M", duration: "like 10s or 1:30"};

function paramHint(spec) {
  const range = spec.min !== undefined && spec.min !== null && spec.max !== undefined && spec.max !== null ? `${spec.min} to ${spec.max}` : "";
  return [spec.description, spec.type, EXAMPLES[spec.type], range].filter(Boolean).join(", ");
}

function typed(text, type) {
  if (type === "boolean") return text === "true";
  if ((type === "integer" || type === "number") && text.trim() !== "" && Number.isFinite(Number(text))) return Number(text);
  return text;
}

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, "0")).join("");
}

/** What POST /v1/explain answers. */
function explanation(told) {
  return panel("What would run", {note: h("span", {class: "note"}, "nothing was started")}, h("div", {class: "body"},
    told.warnings.map(warning => h("div", {class: "box warn"}, h("p", {}, warning.message || String(warning)))),
    told.commands.map(({stage, argv}) => h("div", {class: "command"}, h("div", {class: "row"}, h("span", {class: "badge"}, stage), copier(quoted(argv))),
      h("pre", {tabindex: "0", "aria-label": `Command of ${stage}`}, quoted(argv)))),
    told.commands.length ? null : h("p", {class: "note"}, "No command.")));
}
