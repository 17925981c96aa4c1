// What is told of what was chosen: of a region what the page says, of an operator what the graph does.

const Details = (() => {
  const pane = document.getElementById("details");
  const made = (name, text, ...children) => {
    const element = document.createElement(name);
    if (text) element.textContent = text;
    element.append(...children);
    return element;
  };

  // -- Kernels ----------------------------------------------------------------------------------

  const drawKernel = (holder) => {
    const rows = holder.dataset.heat.split("/");
    const columns = rows[0].length;
    const size = Math.min(18, Math.floor(116 / Math.max(columns, rows.length)) || 4);
    const width = columns * size, height = rows.length * (rows.length === 1 ? 16 : size);
    const picture = Drawing.element("svg", { width, height, "aria-hidden": "true" });
    rows.forEach((row, y) => [...row].forEach((digit, x) => picture.append(Drawing.element("rect", {
      x: x * size, y: y * size, width: size, height: rows.length === 1 ? 16 : size,
      "fill-opacity": (parseInt(digit, 16) / 15).toFixed(2),
    }))));
    holder.append(picture);
  };

  // -- What is shown ----------------------------------------------------------------------------

  const present = (article) => {
    const body = pane.querySelector(".scroll");
    for (const old of body.querySelectorAll("article")) old.remove();
    document.getElementById("hint").hidden = true;
    body.append(article);
    body.scrollTop = 0;
    const { top } = pane.getBoundingClientRect();
    if (top < 0 || top > innerHeight - 160) pane.scrollIntoView({ block: "start" });
  };

  const region = (number) => {
    const kept = document.getElementById("regions").content.querySelector(`#region-${number}`);
    if (!kept) return false;
    const article = document.importNode(kept, true);
    for (const holder of article.querySelectorAll(".heat")) drawKernel(holder);
    present(article);
    document.getElementById("details-title").textContent = "Region";
    return true;
  };

  const whyOf = (vertex) => {
    if (vertex.isEnd) return "";
    if (vertex.refusal) {
      const row = document.getElementById(`refusal-${vertex.refusal}`);
      return row ? row.lastElementChild.textContent : "";
    }
    return vertex.affine ? "It is affine; nothing is gained by joining it with another operator."
      : "It is not affine: nothing is joined with it or across it.";
  };

  const neighbours = (graph, numbers) => {
    const list = made("ul");
    for (const number of numbers) {
      const other = graph.vertices[number];
      const button = made("button", other.title);
      button.type = "button";
      button.className = "link";
      button.dataset.vertex = number;
      button.dataset.side = graph.side;
      list.append(made("li", "", button, " ", made("code", other.place)));
    }
    return list;
  };

  const vertex = (graph, chosen) => {
    const article = made("article", "", made("h3", chosen.title), made("code", chosen.place));
    const tell = (title, what) => {
      if (what) article.append(made("h4", title), typeof what === "string" ? made("p", what) : what);
    };
    tell("Shape", chosen.shape);
    tell("Why it stays", graph.side === "before" || chosen.refusal ? whyOf(chosen) : "");
    if (chosen.reads.length) tell("Reads", neighbours(graph, chosen.reads));
    if (chosen.readers.length) tell("Is read by", neighbours(graph, chosen.readers));
    if (chosen.refusal) {
      const link = made("a", "Its row in the table");
      link.href = `#refusal-${chosen.refusal}`;
      article.append(made("p", "", link));
    }
    present(article);
    document.getElementById("details-title").textContent = "Operator";
  };

  return { region, vertex };
})();
