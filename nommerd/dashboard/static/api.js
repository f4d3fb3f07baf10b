// The feeder's API. The token stays in this tab (sessionStorage) and goes nowhere but into the header.

const KEY = "nommerd.token";

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail || `The server answered ${status}.`);
    this.status = status;
    this.code = problem.code || "";
    this.faults = problem.errors || [];
  }
}

/** Nothing, or half an answer, came back. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

/** The error, told to the console unless it is one that happens to a page without a fault: else nobody would ever see it. */
export function noted(error) {
  if (!(error instanceof ApiError || error instanceof Unreachable || error.name === "AbortError")) console.error(error);
  return error;
}

/** What the network gives; Unreachable where it breaks. */
export async function received(promise) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Unreachable();
  }
}

/** Who we are: {name, project, scopes}, once the token is known to be right. */
export const session = {
  who: null,
  get token() {
    return sessionStorage.getItem(KEY);
  },
  set token(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  },
  can(scope) {
    return Boolean(this.who && (this.who.scopes.includes(scope) || this.who.scopes.includes("admin")));
  },
  /** May see and do what concerns all projects. */
  get installation() {
    return Boolean(this.who && this.who.project === "default");
  },
  /** Called when the token is refused. */
  onRefused: () => {},
};

/** The response of a call. Raises ApiError for what is refused; Unreachable. */
export async function send(method, path, {body, type, headers = {}, signal} = {}) {
  const given = {...headers, Authorization: `Bearer ${session.token}`};
  if (body !== undefined) given["Content-Type"] = type || "application/json";
  const answer = await received(fetch(path, {
    method, signal, headers: given, cache: "no-store", credentials: "omit", redirect: "error",
    body: body === undefined ? undefined : type ? body : JSON.stringify(body),
  }));
  if (answer.ok) return answer;
  let problem = {};
  try {
    problem = await answer.json();
  } catch {
    // a proxy's page
  }
  const error = new ApiError(answer.status, problem);
  if (answer.status === 401) session.onRefused(error);
  throw error;
}

/** The decoded JSON of a call; null where there is no content. */
export async function call(method, path, options) {
  const answer = await send(method, path, options);
  return answer.status === 204 ? null : received(answer.json());
}

export const get = (path, signal) => call("GET", path, {signal});

/** Query string of what is set; lists repeat. */
export function query(fields) {
  const made = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one) made.append(name, one);
  }
  const text = made.toString();
  return text ? `?${text}` : "";
}

/** A part of a path. */
export const part = text => encodeURIComponent(text);

/** What people are told of it. */
export function message(error) {
  noted(error);
  return error instanceof ApiError || error instanceof Unreachable ? error.message : "Something went wrong in this page.";
}
