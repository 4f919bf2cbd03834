// The small parts that every page is made of.

import { html } from "../html.js";
import { plain } from "../format.js";

// Figure shows {text, unit, tone} with the unit set back; with an address it
// leads to where the figure comes from.
export function Figure({ of: { text, unit, tone }, href, title }) {
  const inner = html`<span class=${`figure ${tone ?? ""}`}>${text}${unit && html`<small>${unit}</small>`}</span>`;
  return href ? html`<a class="quietly" href=${href} title=${title}>${inner}</a>` : inner;
}

// Fact is a figure with its name, in a list of class "figures".
export const Fact = ({ name, of, href }) =>
  html`<div>
    <dt>${name}</dt>
    <dd><${Figure} of=${of} href=${href} /></dd>
  </div>`;

const drawings = {
  locked:
    "M4.5 7V5a3.5 3.5 0 0 1 7 0v2h.5a1 1 0 0 1 1 1v5a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1V8a1 1 0 0 1 1-1zm1.6 0h3.8V5a1.9 1.9 0 0 0-3.8 0z",
  open: "M4.5 7V4a3.5 3.5 0 0 1 6.9-.8l-1.6.4A1.9 1.9 0 0 0 6.1 4v3H12a1 1 0 0 1 1 1v5a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1V8a1 1 0 0 1 1-1z",
  overview: "M2 2h5v6H2zM9 2h5v3H9zM9 7h5v7H9zM2 10h5v4H2z",
  map: "M1 6.5h4v3H1zM11 2h4v3h-4zM11 11h4v3h-4zM5 7.5h2.2v-4H11v1H8.2v7H11v1H7.2v-4H5z",
  live: "M1 7.3h3.2L6.3 2l3.4 9.4 1.6-4.1H15v1.4h-2.7L9.7 15 6.2 5.4 5.1 8.7H1z",
  identities: "M8 1a3.2 3.2 0 1 1 0 6.4A3.2 3.2 0 0 1 8 1zM2 14.5c0-3.4 2.6-5.6 6-5.6s6 2.2 6 5.6z",
  proxies: "M2 2h12v5H2zM2 9h12v5H2zM4 4v1h1V4zM4 11v1h1v-1z",
  good: "M6.4 12.6 2 8.2l1.4-1.4 3 3L12.6 3.6 14 5z",
  bad: "M8 1 15.5 14.5H.5zM7.2 6v4.2h1.6V6zM7.2 11.3v1.6h1.6v-1.6z",
};

export const Icon = ({ name }) =>
  html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path fill-rule="evenodd" d=${drawings[name]} /></svg>`;

export const iconPath = (name) => drawings[name];

const securities = {
  mtls: ["locked", "mTLS", "mutual TLS: encrypted, and both sides proved who they are"],
  plaintext: ["open", "plaintext", "not protected by the mesh: one side is not part of it"],
  local: ["", "local", "never left the workload's own network namespace"],
};

export const isOpen = (edge) => edge.security !== "mtls" && edge.security !== "local";

export function Security({ kind }) {
  const [icon, word, title] = securities[kind] ?? ["open", kind, kind];
  const tone = kind === "mtls" ? "ok" : kind === "local" ? "quiet" : "alarm";
  return html`<span class=${`badge ${tone}`} title=${title}
    >${icon && html`<${Icon} name=${icon} />`}<span>${word}</span></span
  >`;
}

// Spark is a line of the last minutes, of as many as are known, on the scale of
// its own highest point.
export function Spark({ values = [], width = 112, height = 24 }) {
  const known = values.slice(values.findIndex((v) => v !== null));
  if (known.length < 2 || known.at(-1) === null) {
    return html`<svg class="spark" viewBox=${`0 0 ${width} ${height}`} aria-hidden="true" />`;
  }
  const top = Math.max(1e-9, ...known);
  const step = width / (known.length - 1);
  const points = known
    .map((v, i) => v !== null && `${(i * step).toFixed(1)},${(height - 2 - (v / top) * (height - 4)).toFixed(1)}`)
    .filter(Boolean)
    .join(" ");
  return html`<svg class="spark" viewBox=${`0 0 ${width} ${height}`} preserveAspectRatio="none" aria-hidden="true">
    <polygon points=${`0,${height} ${points} ${width},${height}`} />
    <polyline points=${points} />
  </svg>`;
}

// Section is a heading with what belongs to it, and a link to its raw figures.
export function Section({ title, note, raw, children, id, aside }) {
  return html`<section aria-labelledby=${id} class=${`s-${id}`}>
    <div class="heading">
      <h2 id=${id}>${title}</h2>
      ${note && html`<p>${note}</p>`} ${aside}
      ${raw && html`<a class="raw" href=${raw} title="The same figures, from the API">JSON</a>`}
    </div>
    ${children}
  </section>`;
}

// Empty says why there is nothing, and what to type to change that.
export const Empty = ({ children, type }) =>
  html`<p class="empty">${children} ${type && html`<code>${type}</code>`}</p>`;

export function Fault({ error }) {
  return html`<p class="notice" role="alert">${error}</p>`;
}

// Choice is a row of links of which one is chosen.
export function Choice({ label, options, chosen, hrefOf }) {
  return html`<nav class="choice" aria-label=${label}>
    ${Object.entries(options).map(
      ([key, word]) =>
        html`<a href=${hrefOf(key)} aria-current=${key === chosen ? "true" : null} key=${key}>${word}</a>`,
    )}
  </nav>`;
}

// Share is a part of a whole, as a bar with a mark where an even share would be.
export function Share({ of, fair, label }) {
  return html`<span class="share">
    <span class="track" role="img" aria-label=${plain(label)}>
      <span class="fill" style=${{ width: `${(of ?? 0) * 100}%` }}></span>
      ${fair > 0 && fair < 1 && html`<span class="fair" style=${{ left: `${fair * 100}%` }}></span>`}
    </span>
    <${Figure} of=${label} />
  </span>`;
}
