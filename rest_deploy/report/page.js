// Sorting, a light and a dark theme, one engine brought forward. The page is complete without it.
(() => {
  "use strict";
  const root = document.documentElement;
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;

  const theme = document.querySelector(".theme");
  const name = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    name();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();

  const key = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.v;
    if (value !== undefined) return Number(value);
    return cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table[data-sort]")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows].sort((one, other) => {
          const a = key(one, column), b = key(other, column);
          if (a === "" || b === "") return compare(a, b);
          return up ? compare(a, b) : compare(b, a);
        });
        body.append(...rows);
      });
    });
  }

  for (const spot of document.querySelectorAll("[data-engine]")) {
    const own = `.e${spot.dataset.engine}`;
    const show = (on) => {
      for (const svg of document.querySelectorAll(".plot svg")) {
        const found = svg.querySelectorAll(own);
        svg.classList.toggle("dim", on && found.length > 0);
        for (const mark of found) mark.style.opacity = on ? "1" : "";
      }
    };
    spot.addEventListener("pointerenter", () => show(true));
    spot.addEventListener("pointerleave", () => show(false));
  }
})();
