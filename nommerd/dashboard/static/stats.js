// The installation's figures, asked for each five seconds and shared by all that show them.

import {get} from "./api.js";
import {poll} from "./poll.js";

const EACH_MS = 5000;
const listeners = new Set();

export const stats = {
  figures: null,
  error: null,
  now: () => {},

  start(signal) {
    this.figures = this.error = null;
    this.now = poll(async () => {
      this.figures = await get("/v1/stats", signal);
    }, EACH_MS, signal, error => {
      this.error = error;
      for (const listener of listeners) listener(this);
    });
  },

  /** listener({figures, error}) now and at each change, until the signal. */
  listen(listener, signal) {
    listeners.add(listener);
    if (signal) signal.addEventListener("abort", () => listeners.delete(listener), {once: true});
    if (this.figures) listener(this);
  },
};
