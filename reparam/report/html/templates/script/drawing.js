// A layout as SVG. What is written comes from the model: it is set as text, never as markup.

const Drawing = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const COLORS = 8;

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  // -- Text that fits ---------------------------------------------------------------------------

  const pen = document.createElement("canvas").getContext("2d");
  const widths = new Map();
  const width = (text, font) => {
    const key = `${font}\n${text}`;
    if (!widths.has(key)) {
      pen.font = font;
      widths.set(key, pen.measureText(text).width);
    }
    return widths.get(key);
  };
  // As much of a text as there is room for; of a place its end, which tells more.
  const fitting = (text, font, room, { end = false } = {}) => {
    if (width(text, font) <= room) return text;
    let low = 0, high = text.length;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      const cut = end ? `…${text.slice(text.length - middle)}` : `${text.slice(0, middle)}…`;
      if (width(cut, font) <= room) low = middle;
      else high = middle - 1;
    }
    return end ? `…${text.slice(text.length - low)}` : `${text.slice(0, low)}…`;
  };
  const fonts = () => {
    const style = getComputedStyle(document.documentElement);
    const [sans, mono] = ["--sans", "--mono"].map((name) => style.getPropertyValue(name));
    return { name: `12.5px ${sans}`, tag: `600 11px ${sans}`, at: `10.5px ${mono}` };
  };

  // -- Boxes ------------------------------------------------------------------------------------

  const written = (box, lines, tag, font) => {
    const room = box.w - 18, taken = tag ? width(tag, font.tag) + 8 : 0;
    const [name, ...more] = lines;
    const texts = [element("text", { class: "name", x: 9, y: 17 },
      fitting(name, font.name, room - taken))];
    more.filter(Boolean).forEach((line, index) => texts.push(
      element("text", { class: "at", x: 9, y: 32 + 14 * index },
        fitting(line, font.at, room, { end: true }))));
    if (tag) texts.push(element("text", { class: "tag", x: box.w - 9, y: 17 }, tag));
    return texts;
  };

  const spokenOf = (vertex) => [
    vertex.title, vertex.place, vertex.shape,
    vertex.region && `region ${vertex.region}`, vertex.refusal && !vertex.region && "stays",
  ].filter(Boolean).join(", ");

  const vertexBox = (box, chosen, font) => {
    const vertex = box.item;
    const kind = vertex.region ? `region c${vertex.region % COLORS}`
      : vertex.refusal ? "stays" : vertex.isEnd ? "end" : "grey";
    const pressed = chosen.region ? vertex.region === chosen.region : chosen.vertex === vertex.id;
    const group = element("g", {
      class: `box ${kind}`, id: `${chosen.prefix}-${vertex.id}`, "data-vertex": vertex.number,
      role: "button", tabindex: -1, "aria-pressed": pressed, "aria-label": spokenOf(vertex),
      transform: `translate(${box.x} ${box.y})`,
    });
    if (vertex.region) group.setAttribute("data-region", vertex.region);
    const shape = vertex.shape && `→ ${vertex.shape}`;
    const spoken = [vertex.title, vertex.place, vertex.shape].filter(Boolean).join(" · ");
    group.append(element("title", {}, spoken),
      element("rect", { width: box.w, height: box.h, rx: 6 }),
      ...written(box, [vertex.title, vertex.place, shape],
        vertex.region ? String(vertex.region) : "", font));
    return group;
  };

  const blockButton = (block, isOpen, chosen, changes) => {
    const [before, after] = changes(block);
    return element("g", {
      class: `block ${isOpen ? "opened" : "closed"} ${before === after ? "" : "changes"}`,
      id: `${chosen.prefix}-${block.id}`, "data-block": block.number, role: "button",
      tabindex: -1, "aria-expanded": isOpen,
      "aria-label": `Block ${block.title}, ${block.place}: operators before ${before}, after ${after}`,
    }, element("title", {}, `${block.title} · ${block.place} · operators before ${before}, after ${after}`));
  };

  const closedBox = (box, chosen, changes, font) => {
    const block = box.item, counts = changes(block);
    const group = blockButton(block, false, chosen, changes);
    group.setAttribute("transform", `translate(${box.x} ${box.y})`);
    const tag = counts[0] === counts[1] ? `${counts[0]}` : `${counts[0]} → ${counts[1]}`;
    const shape = block.shape && `→ ${block.shape}`;
    group.append(
      element("rect", { class: "under", x: 3, y: 3, width: box.w - 3, height: box.h - 3, rx: 6 }),
      element("rect", { width: box.w - 3, height: box.h - 3, rx: 6 }),
      ...written({ ...box, w: box.w - 3 }, [`▸ ${block.title}`, block.place, shape], tag, font));
    return group;
  };

  const frame = (box, chosen, changes, font) => {
    const block = box.item;
    const bar = blockButton(block, true, chosen, changes);
    const room = box.w - 18;
    const name = fitting(`▾ ${block.title}`, font.name, room);
    const taken = width(name, font.name) + 10;
    bar.append(element("rect", { width: box.w, height: Layout.BAR, rx: 6 }),
      element("text", { class: "name", x: 9, y: 18 }, name));
    if (room - taken > 30) {
      bar.append(element("text", { class: "at", x: 9 + taken, y: 18 },
        fitting(block.place, font.at, room - taken, { end: true })));
    }
    return element("g", { class: "frame", transform: `translate(${box.x} ${box.y})` },
      element("rect", { class: "back", width: box.w, height: box.h, rx: 6 }), bar,
      level(box.inner, chosen, changes, font));
  };

  const level = (layout, chosen, changes, font) => {
    const lines = element("g", { class: "lines", "aria-hidden": "true" },
      ...layout.lines.map(({ path, arrow }) =>
        element("path", arrow ? { d: path, class: "arrow" } : { d: path })));
    return element("g", { class: "level" }, lines, ...layout.boxes.map((box) => {
      if (!box.item.isBlock) return vertexBox(box, chosen, font);
      return box.inner.boxes ? frame(box, chosen, changes, font)
        : closedBox(box, chosen, changes, font);
    }));
  };

  // Draw a layout. Chosen says which region or operator is selected; changes tells of a block how
  // many operators it has before and after.
  const draw = (layout, chosen, changes) => level(layout, chosen, changes, fonts());

  // Where everything lies in the whole picture.
  const places = (layout, left = 0, top = 0, found = new Map()) => {
    for (const box of layout.boxes) {
      const at = { x: left + box.x, y: top + box.y, w: box.w, h: box.h };
      found.set(box.item, box.inner.boxes ? { ...at, h: Layout.BAR, whole: box.h } : at);
      if (box.inner.boxes) places(box.inner, at.x, at.y, found);
    }
    return found;
  };

  return { draw, places, element, COLORS };
})();
