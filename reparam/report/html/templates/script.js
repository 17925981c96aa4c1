"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const STOPS = ".region, .stays";

  // -- Light and dark ---------------------------------------------------------------------------

  const theme = byId("theme");
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const paint = (dark) => {
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    theme.setAttribute("aria-pressed", String(dark));
  };
  const remembered = () => {
    try { return localStorage.getItem("reparam-theme"); } catch { return null; }
  };
  const chosen = remembered();
  paint(chosen === null ? prefers.matches : chosen === "dark");
  theme.addEventListener("click", () => {
    const dark = theme.getAttribute("aria-pressed") !== "true";
    paint(dark);
    try { localStorage.setItem("reparam-theme", dark ? "dark" : "light"); } catch { /* no store */ }
  });
  prefers.addEventListener("change", (event) => {
    if (remembered() === null) paint(event.matches);
  });

  // -- Kernels ----------------------------------------------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";
  const element = (name, attributes) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const drawKernel = (holder) => {
    const rows = holder.dataset.heat.split("/");
    const columns = rows[0].length;
    const size = Math.min(18, Math.floor(116 / Math.max(columns, rows.length)) || 4);
    const width = columns * size, height = rows.length * (rows.length === 1 ? 16 : size);
    const picture = element("svg", { width, height, "aria-hidden": "true" });
    rows.forEach((row, y) => [...row].forEach((digit, x) => picture.append(element("rect", {
      x: x * size, y: y * size, width: size, height: rows.length === 1 ? 16 : size,
      "fill-opacity": (parseInt(digit, 16) / 15).toFixed(2),
    }))));
    holder.append(picture);
  };

  // -- Regions ----------------------------------------------------------------------------------

  const show = (node) => {
    const pane = node.closest(".scroll");
    if (!pane) return;
    const box = node.getBoundingClientRect(), view = pane.getBoundingClientRect();
    if (box.top >= view.top && box.bottom <= view.bottom &&
        box.left >= view.left && box.right <= view.right) return;
    pane.scrollTop += (box.top + box.bottom - view.top - view.bottom) / 2;
    pane.scrollLeft += (box.left + box.right - view.left - view.right) / 2;
  };
  const select = (number) => {
    const details = byId(`region-${number}`);
    if (!details) return;
    for (const article of all(".details article")) article.hidden = article !== details;
    byId("hint").hidden = true;
    for (const holder of all(".heat:empty", details)) drawKernel(holder);
    for (const region of all(".region")) {
      const pressed = region.dataset.region === number;
      region.setAttribute("aria-pressed", String(pressed));
      if (pressed) show(region);
    }
    for (const row of all("tr[data-row]")) {
      if (row.dataset.row === number) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    details.parentElement.scrollTop = 0;
    byId("said").textContent = `Region ${number} is open: ${details.querySelector("h3").textContent}`;
  };

  for (const graph of all("svg.graph")) {
    const stops = all(STOPS, graph).sort((a, b) => {
      const [one, two] = [a, b].map((stop) => stop.getBBox());
      return one.y - two.y || one.x - two.x;
    });
    const enter = (stop) => {
      for (const other of stops) other.setAttribute("tabindex", other === stop ? "0" : "-1");
    };
    if (stops.length) enter(stops[0]);
    graph.addEventListener("click", (event) => {
      const region = event.target.closest(".region");
      if (region) { enter(region); select(region.dataset.region); }
    });
    graph.addEventListener("keydown", (event) => {
      const stop = event.target.closest(STOPS);
      const at = stops.indexOf(stop);
      if (at < 0) return;
      const next = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1,
        Home: 0, End: stops.length - 1 }[event.key];
      if (next !== undefined) {
        event.preventDefault();
        const to = stops[Math.max(0, Math.min(next, stops.length - 1))];
        enter(to);
        to.focus({ preventScroll: true });
        show(to);
      } else if (event.key === "Enter" || event.key === " ") {
        if (!stop.dataset.region) return;
        event.preventDefault();
        select(stop.dataset.region);
      }
    });
  }
  for (const button of all("[data-open]")) {
    button.addEventListener("click", () => {
      select(button.dataset.open);
      byId("details").scrollIntoView({ block: "nearest" });
    });
  }
  for (const link of all(".stays")) {
    link.addEventListener("click", () => {
      search.value = "";
      filter();
    });
  }

  // -- Zoom -------------------------------------------------------------------------------------

  const zoom = (graph, factor) => {
    const now = Number(graph.dataset.zoom || 1) * factor;
    if (now < 0.15 || now > 4) return;
    graph.dataset.zoom = now;
    graph.setAttribute("width", graph.viewBox.baseVal.width * now);
    graph.setAttribute("height", graph.viewBox.baseVal.height * now);
  };
  for (const graph of all("svg.graph")) {
    const fits = (graph.parentElement.clientWidth - 16) / graph.viewBox.baseVal.width;
    if (fits > 0 && fits < 1) zoom(graph, Math.max(fits, 0.55));
  }
  for (const button of all("[data-factor]")) {
    button.addEventListener("click", () => {
      for (const graph of all("svg.graph", byId(button.dataset.side))) {
        zoom(graph, Number(button.dataset.factor));
      }
    });
  }

  // -- Search -----------------------------------------------------------------------------------

  const search = byId("search");
  const rows = all("#tables tbody tr").map((row) => [row, row.textContent.toLowerCase()]);
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    byId("found").textContent = words.length ? `${shown} of ${rows.length} shown` : "";
  };
  search.addEventListener("input", filter);
})();
