"use strict";
(() => {
  document.documentElement.classList.add("js");
  const key = (row, column) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const collator = new Intl.Collator("en", { numeric: true });
  const compare = (a, b) => (typeof a === "number" ? a - b : collator.compare(a, b));
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const falls = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", falls ? "descending" : "ascending");
        const keyed = rows.map((row, place) => ({ row, place, value: key(row, column) }));
        keyed.sort((a, b) => {
          if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.place - b.place;
          return (falls ? -1 : 1) * compare(a.value, b.value) || a.place - b.place;
        });
        body.append(...keyed.map((each) => each.row));
      });
    });
    const tools = document.querySelector(`.tools[data-for="${table.id}"]`);
    const input = tools.querySelector("input");
    const output = tools.querySelector("output");
    const texts = rows.map((row) => row.textContent.toLowerCase());
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      rows.forEach((row, place) => {
        row.hidden = !words.every((word) => texts[place].includes(word));
        count += row.hidden ? 0 : 1;
      });
      output.value = words.length ? `${count} of ${rows.length} rows` : `${rows.length} rows`;
    });
  }
})();
