// Table shows rows by columns: {id, head, title, cell(row), by(row), kind}.
// `by` is what to sort by; a kind "number" is aligned right; "low" and "mid"
// are left out where there is little room. The order is part of the address, and
// so is the wish to see all rows of a long table.

import { html } from "../html.js";
import { choose, useRoute } from "../route.js";

const most = 40; // rows, unless all are asked for

export function Table({ id, caption, columns, rows, keyOf, order = "", rowClass }) {
  const { query } = useRoute();
  const wanted = query[id] ?? order;
  const down = wanted.startsWith("-");
  const column = columns.find((c) => c.by && c.id === wanted.replace(/^-/, ""));
  const sorted = column ? [...rows].sort((a, b) => compare(column.by(a), column.by(b), down)) : rows;
  const all = query.all === id || rows.length <= most + 10;
  const shown = all ? sorted : sorted.slice(0, most);
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${caption}>
    <table id=${id}>
      <caption class="hidden">
        ${caption}
      </caption>
      <thead>
        <tr>
          ${columns.map((c) => html`<${Head} key=${c.id} column=${c} table=${id} down=${c === column ? down : undefined} />`)}
        </tr>
      </thead>
      <tbody>
        ${shown.map(
          (row) =>
            html`<tr key=${keyOf(row)} class=${rowClass?.(row)}>
              ${columns.map((c) => html`<td key=${c.id} class=${c.kind}>${c.cell(row)}</td>`)}
            </tr>`,
        )}
      </tbody>
    </table>
    ${!all && html`<a class="all" href=${choose({ all: id })}>Show all ${rows.length}</a>`}
  </div>`;
}

function Head({ column, table, down }) {
  const { id, head, kind, title, by } = column;
  if (!by) return html`<th scope="col" class=${kind} title=${title}>${head}</th>`;
  const next = down === undefined ? (kind?.includes("number") ? `-${id}` : id) : down ? id : `-${id}`;
  const order = down === undefined ? null : down ? "descending" : "ascending";
  return html`<th scope="col" class=${kind} title=${title} aria-sort=${order}>
    <a href=${choose({ [table]: next })}>${head}</a>
  </th>`;
}

// What is not known comes last in either direction.
function compare(a, b, down) {
  const unknown = (x) => x === null || x === undefined || x === "";
  if (unknown(a) || unknown(b)) return unknown(a) - unknown(b);
  const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return down ? -order : order;
}
