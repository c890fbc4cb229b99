"use strict";
(() => {
  const order = new Intl.Collator("en", { numeric: true });

  /** The sort key of a cell: its number, else its text; null if its value is missing. */
  function key(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.value === undefined) return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  }

  function compared(a, b) {
    return typeof a === "number" && typeof b === "number" ? a - b : order.compare(a, b);
  }

  function sort(table, column, down) {
    const rows = [...table.tBodies[0].rows];
    rows.sort((one, other) => {
      const a = key(one, column), b = key(other, column);
      if (a === null || b === null) return (a === null) - (b === null);
      return (down ? -1 : 1) * compared(a, b);
    });
    table.tBodies[0].append(...rows);
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      head.ariaSort = i !== column ? "none" : down ? "descending" : "ascending";
    });
  }

  for (const table of document.querySelectorAll("table.measures")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: head.textContent });
      button.addEventListener("click", () => sort(table, column, head.ariaSort === "ascending"));
      head.replaceChildren(button);
      head.ariaSort = "none";
    });
  }
})();
