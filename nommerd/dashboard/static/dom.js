// Elements. Text only ever becomes a text node: names come from callers and are shown, never read as markup.

import {message} from "./api.js";

/** h("a", {href: "#/", class: "x", on: {click}}, "text", child…): an element. null, undefined and false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listen] of Object.entries(value)) element.addEventListener(event, listen);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false || child === "") continue;
    if (Array.isArray(child)) add(element, child);
    else element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Put these in the place of all that is in the element. */
export function fill(element, ...children) {
  const made = document.createDocumentFragment();
  add(made, children);
  element.replaceChildren(made);
}

/** Change a text only where it differs: live regions speak, and selections go, at each change. */
export function say(element, text) {
  const wanted = text === null || text === undefined ? "" : String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Replace what is in the element only where it shows something else; `sign` is what it shows, as a text. */
export function redraw(element, sign, make) {
  if (element.dataset.sign === sign) return;
  element.dataset.sign = sign;
  fill(element, make());
}

/** Rows by key: those that stay keep their element, and with it focus and selection. make(item) -> {element, update(item)}. */
export class Keyed {
  constructor(parent, key, make) {
    Object.assign(this, {parent, key, make, rows: new Map()});
  }

  show(items) {
    const wanted = new Map(items.map(item => [this.key(item), item]));
    for (const [key, row] of this.rows) {
      if (!wanted.has(key)) {
        row.element.remove();
        this.rows.delete(key);
      }
    }
    let at = this.parent.firstElementChild;
    for (const [key, item] of wanted) {
      let row = this.rows.get(key);
      if (!row) this.rows.set(key, row = this.make(item));
      row.update(item);
      if (row.element === at) at = at.nextElementSibling;
      else this.parent.insertBefore(row.element, at);
    }
  }
}

/** A titled part of the page. */
export function panel(title, {actions, note} = {}, ...children) {
  const id = `h-${panel.count = (panel.count || 0) + 1}`;
  return h("section", {class: "panel", "aria-labelledby": id},
    h("header", {}, h("h2", {id}, title), note, actions && h("div", {class: "actions"}, actions)), children);
}

/** A table in a frame that scrolls by itself where it is too wide. Heads: [text, class] or text. */
export function table(caption, heads, body) {
  return h("div", {class: "scroll"},
    h("table", {}, h("caption", {class: "unseen"}, caption),
      h("thead", {}, h("tr", {}, heads.map(head => {
        const [text, kind] = Array.isArray(head) ? head : [head, null];
        return h("th", {scope: "col", class: kind}, text || h("span", {class: "unseen"}, "Actions"));
      }))), body));
}

/** A question in a dialog; resolves to whether it was answered with yes. */
export function ask(question, detail, yes) {
  return new Promise(resolve => {
    const go = h("button", {class: "main", type: "button", on: {click: () => dialog.close("yes")}}, yes);
    const dialog = h("dialog", {"aria-labelledby": "ask-title"}, h("h2", {id: "ask-title"}, question), h("p", {}, detail),
      h("div", {class: "row"}, go, h("button", {type: "button", on: {click: () => dialog.close("")}}, "Back")));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A short notice in the corner, read out by screen readers. */
export function toast(text, kind = "good") {
  const box = h("div", {class: `box ${kind}`}, h("p", {}, text));
  document.getElementById("toasts").replaceChildren(box);
  setTimeout(() => box.remove(), kind === "bad" ? 9000 : 4000);
}

/** What the API refused, with its faults and hints. */
export function refusal(error, faults = error.faults) {
  const told = faults && faults.length ? faults : [{message: message(error), hint: "", place: ""}];
  return h("div", {class: "box bad", role: "alert"}, told.map(fault => [
    h("p", {}, h("strong", {}, fault.message), fault.code ? [" ", h("code", {class: "note"}, fault.code)] : null),
    fault.hint ? h("p", {class: "note"}, fault.hint) : null,
  ]));
}

/** Copy a text. Where the page is not a secure context, through a selection. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", {class: "unseen", "aria-hidden": "true", value: text});
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

/** A button that copies, and says so. */
export function copier(text, what = "Copy") {
  const button = h("button", {class: "small", type: "button", on: {click: async () => {
    await copy(typeof text === "function" ? text() : text);
    say(button, "Copied");
    setTimeout(() => say(button, what), 1500);
  }}}, what);
  return button;
}
