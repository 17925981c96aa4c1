// A graph as a file: an SVG that needs no page around it, or a PNG drawn of that.

const Export = (() => {
  const KEPT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-family", "font-size",
    "font-weight", "text-anchor"];
  const MOST_PIXELS = 6e7, LONGEST = 16000;

  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const colors = new Map();
  const plain = (color) => { // programs that draw know fewer ways to name one than browsers
    if (!/^(color|oklab|oklch|lab|lch|rgba?|light-dark)\(/.test(color)) return color;
    if (!colors.has(color)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = color;
      pen.fillRect(0, 0, 1, 1);
      const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data;
      colors.set(color, `#${[red, green, blue].map((part) => part.toString(16).padStart(2, "0")).join("")}`);
    }
    return colors.get(color);
  };

  const styled = (shown, copy) => {
    const style = getComputedStyle(shown);
    for (const name of KEPT) {
      const value = style.getPropertyValue(name);
      const isText = /^(font|text)/.test(name);
      if (isText ? copy.tagName === "text" : value !== "none" || name === "fill") {
        copy.setAttribute(name, plain(value));
      }
    }
  };

  const svg = (scene, { w, h }) => {
    const copy = scene.cloneNode(true);
    copy.removeAttribute("transform");
    const pairs = (root) => root.querySelectorAll("rect, path, text");
    const shown = pairs(scene);
    pairs(copy).forEach((made, index) => {
      styled(shown[index], made);
      if (made.matches(".arrow")) made.setAttribute("marker-end", "url(#arrow)");
    });
    for (const made of copy.querySelectorAll("*")) {
      for (const name of ["id", "role", "tabindex", "aria-pressed", "aria-expanded", "aria-label", "aria-hidden"]) {
        made.removeAttribute(name);
      }
    }
    const marker = document.querySelector("#arrow");
    const arrow = marker.cloneNode(true);
    styled(marker.querySelector("path"), arrow.querySelector("path"));
    const paper = getComputedStyle(scene.closest(".pane")).backgroundColor;
    const whole = Drawing.element("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}` },
      Drawing.element("defs", {}, arrow),
      Drawing.element("rect", { width: w, height: h, fill: plain(paper) }), copy);
    return new XMLSerializer().serializeToString(whole);
  };

  const png = async (source, { w, h }) => {
    const scale = Math.min(2, LONGEST / w, LONGEST / h, Math.sqrt(MOST_PIXELS / (w * h)));
    const picture = new Image();
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source)}`;
    await picture.decode();
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.floor(w * scale));
    canvas.height = Math.max(1, Math.floor(h * scale));
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => { canvas.toBlob(done, "image/png"); });
  };

  const save = (blob, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };

  const file = async (kind, scene, size) => {
    const source = svg(scene, size);
    return kind === "png" ? png(source, size) : new Blob([source], { type: "image/svg+xml" });
  };

  return { file, save };
})();
