// What is seen of a drawing: the wheel zooms where the pointer is, a drag moves it.

class Viewport {
  constructor(svg, scene) {
    Object.assign(this, { svg, scene, scale: 1, x: 0, y: 0, size: { w: 1, h: 1 }, dragged: false });
    svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1;
      const { left, top } = svg.getBoundingClientRect();
      const speed = event.ctrlKey ? 0.01 : 0.0015; // two fingers on a touch pad, or a wheel
      const turn = Math.max(-120, Math.min(event.deltaY * lines, 120));
      this.zoom(Math.exp(-turn * speed), event.clientX - left, event.clientY - top);
    }, { passive: false });
    let from = null;
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.dragged = false;
      from = { x: event.clientX - this.x, y: event.clientY - this.y, at: [event.clientX, event.clientY] };
    });
    svg.addEventListener("pointermove", (event) => {
      if (!from) return;
      if (!event.buttons) { from = null; return; }
      const moved = Math.hypot(event.clientX - from.at[0], event.clientY - from.at[1]);
      if (!this.dragged && moved < 4) return;
      if (!this.dragged) svg.setPointerCapture(event.pointerId);
      this.dragged = true;
      svg.classList.add("dragging");
      this.moveTo(event.clientX - from.x, event.clientY - from.y);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      svg.addEventListener(end, () => { from = null; svg.classList.remove("dragging"); });
    }
    svg.addEventListener("click", (event) => { // the end of a drag is no click
      if (this.dragged) event.stopImmediatePropagation();
      this.dragged = false;
    }, true);
  }

  get view() { return { w: this.svg.clientWidth, h: this.svg.clientHeight }; }

  get fitting() { return Math.min(this.view.w / this.size.w, this.view.h / this.size.h, 1); }

  within(scale) { return Math.max(Math.min(0.05, this.fitting), Math.min(scale, 4)); }

  moveTo(x, y, scale = this.scale) {
    const { w, h } = this.view, edge = 40; // some of the drawing always stays in sight
    this.scale = this.within(scale);
    this.x = Math.max(edge - this.size.w * this.scale, Math.min(x, w - edge));
    this.y = Math.max(edge - this.size.h * this.scale, Math.min(y, h - edge));
    this.scene.setAttribute("transform", `translate(${this.x} ${this.y}) scale(${this.scale})`);
  }

  zoom(factor, x = this.view.w / 2, y = this.view.h / 2) {
    const scale = this.within(this.scale * factor);
    const by = scale / this.scale;
    this.moveTo(x - (x - this.x) * by, y - (y - this.y) * by, scale);
  }

  fit() {
    const { w, h } = this.view;
    const scale = this.fitting;
    this.moveTo((w - this.size.w * scale) / 2, (h - this.size.h * scale) / 2, scale);
  }

  // Begin where the data goes in, as large as can be read.
  start(input) {
    const { w, h } = this.view, least = 0.62;
    if (this.fitting >= least) { this.fit(); return; }
    const scale = Math.min(1, Math.max(w / this.size.w, least));
    const whole = this.size.w * scale;
    const x = whole <= w ? (w - whole) / 2 : w / 2 - (input.x + input.w / 2) * scale;
    this.moveTo(x, input.y * scale < h / 2 ? 0 : 20 - input.y * scale, scale);
  }

  // Bring a box into sight, if it is not.
  show({ x, y, w, h }) {
    const view = this.view, k = this.scale;
    const left = this.x + x * k, top = this.y + y * k;
    if (left >= 0 && top >= 0 && left + w * k <= view.w && top + h * k <= view.h) return;
    this.moveTo(view.w / 2 - (x + w / 2) * k, view.h / 2 - (y + h / 2) * k);
  }
}
