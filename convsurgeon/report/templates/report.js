"use strict";
(() => {
  const table = document.getElementById("layer-table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const filter = document.getElementById("filter");
  const which = document.getElementById("which");
  const order = document.getElementById("order");
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  // Numbers by size, names as people count (conv2 before conv10); what has no value stays at the end.
  const compare = (a, b) => {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? Infinity : -Infinity;
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  const sort = (column, direction) => {
    heads.forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const value = (row) => row.cells[column].dataset.v ?? "";
    const sorted = rows.slice().sort((one, two) => {
      const found = compare(value(one), value(two));
      return Number.isFinite(found) ? direction * found : Math.sign(found);
    });
    body.append(...sorted);
  };
  const show = () => {
    const wanted = filter.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const fits = (!which.value || row.dataset.kind === which.value) && wanted.every((word) => words.get(row).includes(word));
      row.hidden = !fits;
      count += fits;
    }
    document.getElementById("count").textContent = count === rows.length ? `${count} layers` : `${count} of ${rows.length} layers`;
    document.getElementById("empty").hidden = count > 0;
  };

  order.append(new Option("order of the model", ""));
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    const number = head.classList.contains("n");
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sort(column, now ? (now === "ascending" ? -1 : 1) : number ? -1 : 1);
    });
    order.append(new Option(`by ${button.ariaLabel || button.textContent}`, `${column},${number ? -1 : 1}`));
  });
  order.addEventListener("change", () => {
    if (order.value) sort(...order.value.split(",").map(Number));
    else body.append(...rows);
  });
  filter.addEventListener("input", show);
  which.addEventListener("change", show);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
  show();
})();
