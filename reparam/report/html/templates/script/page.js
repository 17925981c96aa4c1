// The page: panes, tables, keys, light and dark.

(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const say = (text) => { byId("said").textContent = text; };

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
  const earlier = remembered();
  paint(earlier === null ? prefers.matches : earlier === "dark");
  theme.addEventListener("click", () => {
    const dark = theme.getAttribute("aria-pressed") !== "true";
    paint(dark);
    try { localStorage.setItem("reparam-theme", dark ? "dark" : "light"); } catch { /* no store */ }
  });
  prefers.addEventListener("change", (event) => {
    if (remembered() === null) paint(event.matches);
  });

  // -- Graphs -----------------------------------------------------------------------------------

  const MOST_BOXES = 200; // are drawn at first
  const data = JSON.parse(byId("graphs").textContent);
  const panes = all("svg.graph").map((svg) => {
    const scene = Drawing.element("g", { class: "scene" });
    svg.append(scene);
    return { svg, scene, graph: new Graph(data, svg.id), port: new Viewport(svg, scene), places: new Map() };
  });
  const shapes = panes.some(({ graph }) => graph.vertices.some((vertex) => vertex.shape));
  let open = panes.length ? panes[0].graph.firstOpen(MOST_BOXES) : new Set();
  let chosen = {};

  const changes = (block) => panes.map(({ graph }) => graph.blocks[block.number].operators);
  const draw = (pane) => {
    const layout = Layout.whole(pane.graph, open, shapes);
    pane.places = Drawing.places(layout);
    pane.port.size = { w: layout.w, h: layout.h };
    pane.layout = layout;
    const pressed = chosen.side && chosen.side !== pane.graph.side ? {} : chosen;
    const focused = document.activeElement?.closest(".box, .block")?.id;
    pane.scene.replaceChildren(Drawing.draw(layout, { ...pressed, prefix: pane.graph.side }, changes));
    pane.stops = all(".box, .block", pane.scene);
    enter(pane, byId(focused) && pane.scene.contains(byId(focused)) ? byId(focused) : pane.stops[0]);
    if (focused && pane.scene.contains(byId(focused))) byId(focused).focus({ preventScroll: true });
  };
  const enter = (pane, stop) => {
    pane.stop?.setAttribute("tabindex", "-1");
    pane.stop = stop;
    stop?.setAttribute("tabindex", "0");
  };
  // Draw again, with a block or the middle of what is seen where it was.
  const redraw = (held) => {
    for (const pane of panes) {
      const before = held && pane.places.get(pane.graph.blocks[held]);
      draw(pane);
      const after = held && pane.places.get(pane.graph.blocks[held]);
      const { port } = pane;
      if (before && after) {
        port.moveTo(port.x + (before.x - after.x) * port.scale + (before.w - after.w) / 2 * port.scale,
          port.y + (before.y - after.y) * port.scale);
      } else port.moveTo(port.x, port.y);
    }
  };
  const start = (pane) => {
    const [first] = [...pane.places.keys()].filter((item) => item.title === "input" || !item.isBlock);
    const at = pane.places.get(first) || pane.places.values().next().value;
    if (at) pane.port.start(at);
  };

  const toggle = (number) => {
    const opened = !open.has(number);
    if (opened) open.add(number);
    else open.delete(number);
    redraw(number);
    const { title, place } = panes[0].graph.blocks[number];
    say(`${title} ${place} is ${opened ? "open" : "closed"}`);
  };
  const reveal = (vertex) => {
    const closed = vertex.around.slice(1).filter((block) => !open.has(block.number));
    for (const block of closed) open.add(block.number);
    return closed.length > 0;
  };
  const mark = () => {
    for (const { svg, graph } of panes) {
      for (const box of all(".box", svg)) {
        const pressed = chosen.region ? Number(box.dataset.region) === chosen.region
          : chosen.side === graph.side && chosen.vertex === `vertex-${box.dataset.vertex}`;
        box.setAttribute("aria-pressed", String(Boolean(pressed)));
      }
    }
    for (const row of all("tr[data-row]")) {
      if (Number(row.dataset.row) === chosen.region) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  };
  const selectRegion = (region) => {
    if (!Details.region(region)) return;
    chosen = { region };
    const members = panes.map(({ graph }) => graph.vertices.filter((vertex) => vertex.region === region));
    if (members.flat().map(reveal).some(Boolean)) redraw();
    mark();
    panes.forEach((pane, index) => {
      const last = members[index][members[index].length - 1];
      if (last) pane.port.show(pane.places.get(last));
    });
    const title = document.querySelector(".details article h3").textContent;
    say(`Region ${region} is open: ${title}`);
  };
  const selectVertex = (pane, number) => {
    const vertex = pane.graph.vertices[number];
    if (vertex.region) { selectRegion(vertex.region); return; }
    chosen = { vertex: vertex.id, side: pane.graph.side };
    if (reveal(vertex)) redraw();
    mark();
    pane.port.show(pane.places.get(vertex));
    Details.vertex(pane.graph, vertex);
    say(`${vertex.title} ${vertex.place} is open`);
  };
  const act = (pane, stop) => {
    if (stop.dataset.block) toggle(Number(stop.dataset.block));
    else selectVertex(pane, Number(stop.dataset.vertex));
  };

  // The next box in a direction: the nearest one, with those beside the way farther off.
  const towards = (pane, stop, [right, down]) => {
    const middle = (node) => {
      const box = node.getBoundingClientRect();
      return [box.left + Math.min(box.width, 1e9) / 2, (box.top + box.bottom) / 2];
    };
    const [x, y] = middle(stop);
    let best = null, least = Infinity;
    for (const other of pane.stops) {
      if (other === stop) continue;
      const [toX, toY] = middle(other);
      const ahead = (toX - x) * right + (toY - y) * down;
      const aside = Math.abs((toX - x) * down) + Math.abs((toY - y) * right);
      const far = ahead + 2 * aside;
      if (ahead > 1 && far < least && (down || aside < ahead)) { best = other; least = far; }
    }
    return best;
  };
  const ARROWS = { ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] };
  const itemOf = ({ graph }, { dataset }) =>
    (dataset.block ? graph.blocks[dataset.block] : graph.vertices[dataset.vertex]);
  const onKey = (pane, event) => {
    const stop = event.target.closest(".box, .block");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const next = stop && ({ Home: pane.stops[0], End: pane.stops[pane.stops.length - 1] }[event.key] ||
      (ARROWS[event.key] && (towards(pane, stop, ARROWS[event.key]) || stop)));
    if (next) {
      enter(pane, next);
      next.focus({ preventScroll: true });
      pane.port.show(pane.places.get(itemOf(pane, next)));
    } else if (stop && (event.key === "Enter" || event.key === " ")) act(pane, stop);
    else if (event.key === "+" || event.key === "=") pane.port.zoom(1.25);
    else if (event.key === "-") pane.port.zoom(0.8);
    else if (event.key === "0") pane.port.fit();
    else return;
    event.preventDefault();
  };

  for (const pane of panes) {
    pane.svg.addEventListener("click", (event) => {
      const stop = event.target.closest(".box, .block");
      if (!stop) return;
      enter(pane, stop);
      act(pane, stop);
    });
    pane.svg.addEventListener("keydown", (event) => onKey(pane, event));
    draw(pane);
    start(pane);
    const tools = pane.svg.closest(".pane");
    const name = `${document.title.replace(/^reparam: /, "")}-${pane.graph.side}`.replace(/[^\w.-]+/g, "_");
    for (const button of all("[data-tool]", tools)) {
      button.addEventListener("click", async () => {
        const { tool } = button.dataset;
        if (tool === "fit") pane.port.fit();
        else if (tool === "start") start(pane);
        else if (Number(tool)) pane.port.zoom(Number(tool));
        else {
          const file = await Export.file(tool, pane.scene, pane.port.size);
          if (file) Export.save(file, `${name}.${tool}`);
          say(file ? `${name}.${tool} is saved` : "The picture is too large: save it as SVG");
        }
      });
    }
  }
  for (const button of all("[data-blocks]")) {
    button.addEventListener("click", () => {
      const every = button.dataset.blocks === "open";
      open = new Set(every && panes.length ? panes[0].graph.blocks.map(({ number }) => number) : []);
      for (const pane of panes) { draw(pane); start(pane); }
    });
  }
  document.addEventListener("click", ({ target }) => {
    const opener = target.closest("[data-open]");
    const vertex = target.closest(".details [data-vertex]");
    if (opener) {
      selectRegion(Number(opener.dataset.open));
      byId("details").scrollIntoView({ block: "nearest" });
    } else if (vertex) {
      selectVertex(panes.find(({ graph }) => graph.side === vertex.dataset.side), Number(vertex.dataset.vertex));
    } else if (target.closest(".details a[href^='#refusal-']")) {
      search.value = "";
      filter();
    }
  });

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
