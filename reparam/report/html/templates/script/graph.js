// One graph, some blocks of which are open: what is seen of it, block by block.

class Graph {
  constructor(data, side) {
    const text = (number) => data.texts[number];
    this.side = side;
    this.blocks = data.blocks.map(([title, place, parent], number) => ({
      id: `block-${number}`, number, title: text(title), place: text(place), parent,
      isBlock: true, size: 0, operators: 0, shape: "",
    }));
    this.vertices = data[side].map(
      ([title, place, block, region, refusal, shape, affine, reads], number) => ({
        id: `vertex-${number}`, number, title: text(title), place: text(place), block, region,
        refusal, shape: text(shape), affine: Boolean(affine), reads, readers: [],
        isEnd: text(title) === "input" || text(title) === "output",
      }));
    for (const vertex of this.vertices) {
      for (const source of vertex.reads) this.vertices[source].readers.push(vertex.number);
      for (let at = vertex.block; at >= 0; at = this.blocks[at].parent) {
        this.blocks[at].size += 1;
        this.blocks[at].operators += !vertex.isEnd;
        this.blocks[at].shape = vertex.shape;
      }
    }
    const parts = this.blocks.filter((block) => block.parent === 0);
    this.root = this.blocks[parts.length === 1 ? 1 : 0];
    for (const vertex of this.vertices) vertex.around = this.around(vertex);
  }

  // The blocks that hold an operator, from the outermost to the innermost; on this side of the
  // page one that holds a single operator is none.
  around(vertex) {
    const found = [];
    for (let at = vertex.block; at > this.root.number; at = this.blocks[at].parent) {
      if (this.blocks[at].size > 1) found.push(this.blocks[at]);
    }
    return [this.root, ...found.reverse()];
  }

  // The open blocks that an operator is seen in, and what is seen of it: itself or a closed block.
  seen(vertex, open) {
    const path = [];
    for (const block of vertex.around) {
      if (block !== this.root && !open.has(block.number)) return { path, item: block };
      path.push(block);
    }
    return { path, item: vertex };
  }

  // The blocks to open at first: the first part, which has the model's input, the other parts in
  // order, and one depth after the other, while few boxes are seen.
  firstOpen(most) {
    const boxes = (opened) =>
      new Set(this.vertices.map((vertex) => this.seen(vertex, opened).item)).size;
    let chosen = new Set();
    for (const part of this.root.number ? [] : this.blocks.filter(({ parent }) => parent === 0)) {
      const opened = new Set(chosen).add(part.number);
      if (chosen.size && boxes(opened) > most) return chosen;
      chosen = opened;
    }
    for (let depth = this.root.number ? 2 : 3; ; depth += 1) {
      const opened = new Set(chosen);
      for (const { around } of this.vertices) {
        if (around.length >= depth) opened.add(around[depth - 1].number);
      }
      if (opened.size === chosen.size || boxes(opened) > most) return chosen;
      chosen = opened;
    }
  }

  // For each open block what lies in it, in order, and its nets. A net is one value: where it comes
  // from (nothing if from outside the block), what reads it, and whether it is read outside, too.
  levels(open) {
    const levels = new Map();
    const levelOf = (block) => {
      if (!levels.has(block)) levels.set(block, { items: new Set(), nets: new Map() });
      return levels.get(block);
    };
    levelOf(this.root);
    const seen = this.vertices.map((vertex) => this.seen(vertex, open));
    const child = ({ path, item }, depth) => (depth + 1 < path.length ? path[depth + 1] : item);
    for (const sight of seen) {
      sight.path.forEach((block, depth) => levelOf(block).items.add(child(sight, depth)));
    }
    const net = (block, value) => {
      const { nets } = levelOf(block);
      if (!nets.has(value)) nets.set(value, { value, from: null, to: new Set(), leaves: false });
      return nets.get(value);
    };
    this.vertices.forEach((vertex) => vertex.reads.forEach((number) => {
      const source = seen[number], target = seen[vertex.number];
      if (source.item === target.item) return;
      let shared = 0;
      while (source.path[shared + 1] && source.path[shared + 1] === target.path[shared + 1]) {
        shared += 1;
      }
      for (let depth = shared; depth < source.path.length; depth += 1) {
        const way = net(source.path[depth], source.item);
        way.from = child(source, depth);
        if (depth > shared) way.leaves = true;
        else way.to.add(child(target, depth));
      }
      for (let depth = shared + 1; depth < target.path.length; depth += 1) {
        net(target.path[depth], source.item).to.add(child(target, depth));
      }
    }));
    return levels;
  }
}
