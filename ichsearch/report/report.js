
"use strict";
// A heading sorts its table; a second time the other way round. Cells without a value come last either way.
const order = new Intl.Collator("en", { numeric: true });

function valueOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.number !== undefined) return Number(cell.dataset.number);
  return cell.dataset.text;
}

function compare(one, other) {
  return typeof one === "number" && typeof other === "number" ? one - other : order.compare(String(one), String(other));
}

function sortBy(table, column, falling) {
  const known = [], missing = [];
  for (const row of table.tBodies[0].rows) {
    const value = valueOf(row, column);
    (value === undefined ? missing : known).push({ row, value });
  }
  known.sort((one, other) => (falling ? -1 : 1) * compare(one.value, other.value));
  table.tBodies[0].append(...[...known, ...missing].map((entry) => entry.row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      sortBy(table, column, falling);
    });
  });
}

// Whoever points at a trial sees it in every chart.
const marks = new Map();
for (const mark of document.querySelectorAll("[data-trial]")) {
  const same = marks.get(mark.dataset.trial) ?? [];
  marks.set(mark.dataset.trial, same);
  same.push(mark);
}

let lit = [];
document.addEventListener("pointerover", (event) => {
  const mark = event.target.closest("[data-trial]");
  const next = mark ? marks.get(mark.dataset.trial) : [];
  if (next === lit) return;
  lit.forEach((one) => one.classList.remove("lit"));
  next.forEach((one) => one.classList.add("lit"));
  lit = next;
});
