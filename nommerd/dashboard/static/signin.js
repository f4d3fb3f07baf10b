// The token, asked for. It is kept for this tab only.

import {ApiError, received, session} from "./api.js";
import {fill, h, refusal} from "./dom.js";

export function signIn(main, error, begin) {
  const token = h("input", {id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true,
    "aria-describedby": "token-hint"});
  const said = h("div", {}, error ? refusal(error) : null);
  const button = h("button", {class: "main", type: "submit"}, "Sign in");
  const submit = async event => {
    event.preventDefault();
    button.disabled = true;
    session.token = null;  // a refusal now concerns the new one
    const given = token.value.trim();
    try {
      const answer = await received(fetch("/v1/token", {headers: {Authorization: `Bearer ${given}`}, cache: "no-store"}));
      if (!answer.ok) throw new ApiError(answer.status, await received(answer.json()));
      session.token = given;
      session.who = await received(answer.json());
      begin();
    } catch (problem) {
      fill(said, refusal(problem));
      token.setAttribute("aria-invalid", "true");
      token.select();
    } finally {
      button.disabled = false;
    }
  };
  fill(main, h("section", {class: "panel login"}, h("header", {}, h("h1", {}, "Sign in")),
    h("form", {class: "body", on: {submit}}, said,
      h("label", {for: "token"}, "Token"), token,
      h("p", {class: "hint", id: "token-hint"}, "`nommerd tokens create` makes one; the feeder's own is in the file “token” of its data directory. It stays in this tab."),
      h("p", {}, button))));
  token.focus();
}
