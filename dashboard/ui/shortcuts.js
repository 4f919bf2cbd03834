// Keys for what one does often; `?` lists them.

import { html, useEffect } from "./html.js";
import { choose, go, to } from "./route.js";

const leads = { o: "overview", m: "map", l: "live", i: "identities", p: "proxies" };
const spans = { 1: "5m", 2: "15m", 3: "1h" };

const listed = [
  ["g then o m l i p", "go to Overview, Map, Live, Identities, Proxies"],
  ["1 2 3", "the last 5 minutes, 15 minutes, hour"],
  ["/", "to the filter of this page"],
  ["space", "pause and resume Live"],
  ["?", "this list"],
];

export function useShortcuts() {
  useEffect(() => {
    let led = 0; // when g was pressed
    const press = (event) => {
      if (event.metaKey || event.ctrlKey || event.altKey || event.target.closest("input, select, textarea, dialog"))
        return;
      const page = performance.now() - led < 1500 && leads[event.key];
      led = event.key === "g" ? performance.now() : 0;
      if (page) go(to(page));
      else if (spans[event.key]) go(choose({ range: spans[event.key] }));
      else if (event.key === "?") document.getElementById("help").showModal();
      else if (event.key === "/") document.querySelector("main input")?.focus();
      else if (event.key === " " && event.target.closest("a, button, summary, [tabindex='0']")) return;
      else if (event.key === " " && document.getElementById("pause")) document.getElementById("pause").click();
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}

export function Help() {
  return html`<dialog id="help" aria-labelledby="help-title">
    <h2 id="help-title">Keys</h2>
    <dl>
      ${listed.map(
        ([keys, what]) =>
          html`<div key=${keys}>
            <dt>${keys.split(" ").map((k) => (k === "then" ? " then " : html`<kbd>${k}</kbd>`))}</dt>
            <dd>${what}</dd>
          </div>`,
      )}
    </dl>
    <form method="dialog"><button>Close</button></form>
  </dialog>`;
}
