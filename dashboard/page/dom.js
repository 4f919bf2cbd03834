// Everything that reaches the document goes through here, as text: names and
// paths are chosen by workloads and must never become markup.

export const $ = (id) => document.getElementById(id);

export function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// clone copies the drawing in a template of the page.
export const clone = (id) => $(id).content.firstElementChild.cloneNode(true);

// text changes a node only if it says something else, so that a selection
// and the reading position of a screen reader survive an update.
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

export function className(node, value) {
  if (node.className !== value) node.className = value;
}

// quantity shows {value, unit} with the unit set back.
export function quantity(node, q) {
  if (!node.firstElementChild) node.replaceChildren(el("span"), el("span", "unit"));
  const [value, unit] = node.children;
  text(value, q.value);
  text(unit, q.unit ?? "");
  className(value, q.unit === undefined ? "none" : (q.className ?? ""));
}

// Table keeps a table's rows in step with data. Rows are known by a key, so
// that they move and change instead of being made anew.
export class Table {
  constructor(id, caption, columns, keyOf) {
    this.columns = columns;
    this.keyOf = keyOf;
    this.rows = new Map();
    const head = el("tr");
    for (const column of columns) {
      const th = el("th", column.className.replace(/\b(name|foreign|quiet)\b/g, ""), column.head);
      th.scope = "col";
      if (column.title) th.title = column.title;
      head.append(th);
    }
    this.body = el("tbody");
    this.empty = $(id + "-empty");
    $(id).append(el("caption", "hidden", caption), el("thead", "", head), this.body);
  }

  show(data) {
    const before = this.rows;
    this.rows = new Map();
    data.forEach((item, i) => {
      const key = this.keyOf(item);
      const row = before.get(key) ?? this.#newRow();
      before.delete(key);
      this.rows.set(key, row);
      this.columns.forEach((column, n) => column.set(row.children[n], item, data[i - 1], row));
      if (this.body.children[i] !== row) this.body.insertBefore(row, this.body.children[i] ?? null);
    });
    for (const row of before.values()) row.remove();
    if (this.empty) this.empty.hidden = data.length > 0;
  }

  // prepend adds one row on top and lets go of those beyond the limit.
  prepend(item, limit) {
    const row = this.#newRow();
    this.columns.forEach((column, n) => column.set(row.children[n], item));
    this.body.prepend(row);
    while (this.body.children.length > limit) this.body.lastElementChild.remove();
  }

  #newRow() {
    const row = el("tr");
    for (const column of this.columns) row.append(el("td", column.className));
    return row;
  }
}
