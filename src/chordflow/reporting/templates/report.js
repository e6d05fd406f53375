"use strict";
(function () {
  const root = document.documentElement;
  const all = (selector, within) => Array.from((within || document).querySelectorAll(selector));

  // ---- Theme ----
  const system = matchMedia("(prefers-color-scheme: dark)");
  const toggle = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const showTheme = () => toggle.setAttribute("aria-pressed", String(isDark()));
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("chordflow-theme", root.dataset.theme);
    } catch (error) {
      // Nothing is kept; the choice holds for this visit.
    }
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  // ---- Tables ----
  const status = document.getElementById("status");
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.textContent.trim() === "-" ? null : cell.textContent.trim();
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), undefined, { numeric: true });
  for (const table of all("table")) {
    const heads = all("thead th", table);
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        const sign = order === "ascending" ? 1 : -1;
        const rows = Array.from(body.rows).map((row, place) => ({ row, place, key: keyOf(row, column) }));
        // What was not measured comes last in either order.
        rows.sort((a, b) => {
          if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
          return sign * compare(a.key, b.key) || a.place - b.place;
        });
        body.append(...rows.map(({ row }) => row));
        heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
        status.textContent = `${document.getElementById(table.getAttribute("aria-labelledby")).textContent}: sorted by ${head.textContent.trim()}, ${order}.`;
      });
    });
  }

  // ---- Clips ----
  for (const button of all("button.play")) {
    const [still, moving] = all("img", button.parentElement);
    button.addEventListener("click", () => {
      const plays = moving.hidden;
      moving.hidden = !plays;
      still.hidden = plays;
      button.textContent = plays ? "Stop" : "Play";
    });
  }

  // ---- Plots ----
  const drawn = JSON.parse(document.getElementById("plots").textContent);
  const touch = matchMedia("(pointer: coarse)").matches;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const holders = all(".plot");
  const draw = (holder) => {
    if (holder.layout) return;
    const { data, layout } = drawn[holder.dataset.plot];
    // A finger that moves over a plot wants to scroll.
    layout.dragmode = touch ? false : "zoom";
    if (holder.clientWidth < 420) {
      layout.font.size = 11;
      // A legend of many lines takes its room from the plot.
      if (layout.showlegend !== false && data.length > 3) layout.height += 14 * (data.length - 3);
    }
    if (still) layout.transition = { duration: 0 };
    Plotly.newPlot(holder, data, layout, { displayModeBar: false, responsive: true, doubleClick: "reset" });
  };
  // What is folded has no width: it is drawn when it is opened.
  const drawVisible = () => holders.filter((holder) => holder.checkVisibility()).forEach(draw);
  for (const item of all("details")) item.addEventListener("toggle", drawVisible);
  const reveal = (address) => {
    const folded = document.getElementById(address.slice(1))?.closest("details");
    if (folded) folded.open = true;
  };
  for (const link of all("nav a")) link.addEventListener("click", () => reveal(link.hash));
  reveal(location.hash);
  setTimeout(() => {
    drawVisible();
    root.dataset.drawn = "true";
  });

  // ---- Print ----
  // Paper is narrower than most windows: plots are drawn to its width, and what is folded is opened.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    opened.forEach((item) => (item.open = true));
    holders.forEach(draw);
    for (const holder of holders) {
      if (holder.layout) Plotly.relayout(holder, { width: holder.closest(".panel:only-child") ? 680 : 330, autosize: false });
    }
  });
  addEventListener("afterprint", () => {
    opened.forEach((item) => (item.open = false));
    for (const holder of holders) {
      if (holder.layout) Plotly.relayout(holder, { width: null, autosize: true });
    }
  });
})();
