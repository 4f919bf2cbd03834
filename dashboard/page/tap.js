// The tap pane: off until asked for, since it makes every proxy send more.

import { $, Table, text } from "./dom.js";
import { taps } from "./columns.js";
import { count } from "./format.js";

const limit = 200;

export function startTap() {
  const table = new Table("tap", "Requests as they happen", taps);
  let source = null;
  let dropped = 0;

  const stop = (note) => {
    source?.close();
    source = null;
    text($("tap-button"), "Start");
    text($("tap-note"), note);
  };

  const start = (form) => {
    const query = new URLSearchParams(new FormData(form));
    for (const [key, value] of [...query]) if (!value) query.delete(key);
    query.set("max", "20");
    dropped = 0;
    $("tap-pane").hidden = false;
    text($("tap-button"), "Stop");
    text($("tap-note"), "Waiting for requests…");
    source = new EventSource(`/api/v1/tap?${query}`);
    source.onmessage = (message) => {
      const event = JSON.parse(message.data);
      dropped += event.dropped ?? 0;
      text($("tap-note"), dropped ? `A sample: ${count(dropped)} more were not shown` : "");
      table.prepend(event, limit);
    };
    source.onerror = () => {
      if (source?.readyState === EventSource.CLOSED) stop("The tap was refused; too many may be open.");
    };
  };

  $("tap-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (source) stop("Stopped");
    else start(event.target);
  });
}
