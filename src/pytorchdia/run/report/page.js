"use strict";
(function () {
  const step = 700; // ms
  let phase = 0;
  let timer = null;
  const triplets = Array.from(document.querySelectorAll(".triplet")).filter(
    (t) => t.querySelector(".blink"));

  function draw() {
    for (const triplet of triplets) {
      Array.from(triplet.querySelectorAll("figure")).forEach((figure, i) =>
        figure.classList.toggle("now", i === phase));
    }
  }
  function set(triplet, on) {
    triplet.classList.toggle("blinking", on);
    triplet.querySelector(".blink").setAttribute("aria-pressed", String(on));
    const any = triplets.some((t) => t.classList.contains("blinking"));
    if (any && timer === null) {
      phase = 0;
      timer = setInterval(() => { phase = (phase + 1) % 3; draw(); }, step);
    } else if (!any && timer !== null) {
      clearInterval(timer);
      timer = null;
    }
    draw();
    const all = document.getElementById("blink-all");
    all.setAttribute("aria-pressed",
      String(triplets.every((t) => t.classList.contains("blinking"))));
  }
  for (const triplet of triplets) {
    triplet.querySelector(".blink").addEventListener("click", () =>
      set(triplet, !triplet.classList.contains("blinking")));
  }
  const all = document.getElementById("blink-all");
  if (all) {
    all.addEventListener("click", () => {
      const on = all.getAttribute("aria-pressed") !== "true";
      triplets.forEach((t) => set(t, on));
    });
  }

  function key(row, column) {
    const cell = row.cells[column];
    const number = cell.dataset.v;
    return number === undefined ? cell.textContent : Number(number);
  }
  function compare(a, b) {
    const empty = (v) => v === "";
    if (empty(a) || empty(b)) { return empty(a) - empty(b); }
    if (typeof a === "number" && typeof b === "number") { return a - b; }
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = Array.from(table.tBodies[0].rows).map((row) => [key(row, column), row]);
      rows.sort((a, b) => (a[0] === "" || b[0] === "" ? 1 : down ? -1 : 1) * compare(a[0], b[0]));
      rows.forEach((pair) => table.tBodies[0].appendChild(pair[1]));
    }));
  }

  const find = document.getElementById("find");
  const shown = document.getElementById("shown");
  find.addEventListener("input", () => {
    const rows = Array.from(document.getElementById("frames-table").tBodies[0].rows);
    const words = find.value.toLowerCase();
    rows.forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(words); });
    shown.textContent = words ? rows.filter((r) => !r.hidden).length + " of " + rows.length : "";
  });
})();
