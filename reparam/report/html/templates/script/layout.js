// Where boxes lie and lines run: in layers, block by block, the inner blocks first.
//
// A box lies one layer below the lowest one that it reads. A value that is read further down runs
// through the layers between in a column of its own, once however many read it, so that no line
// meets a box. A block has few boxes: all of this takes time in proportion to what is seen.

const Layout = (() => {
  const BOX = { w: 184, h: 40, shape: 15 };
  const BAR = 28, PAD = 14, BETWEEN = 22, BESIDE = 20, WIRE = 11, MARGIN = 24;
  const SORTS = 8, MOVES = 48, HEAVY = 4;

  // -- Layers -----------------------------------------------------------------------------------

  const layersOf = (items, nets, first, stacked) => {
    const at = new Map(items.map((item, index) => [item, index]));
    const layers = items.map((_, index) => (stacked ? index : first));
    const reads = items.map(() => []);
    for (const net of nets) for (const item of net.to) reads[at.get(item)].push(net);
    items.forEach((item, index) => {
      for (const { from } of reads[index]) {
        if (from) layers[index] = Math.max(layers[index], layers[at.get(from)] + 1);
      }
    });
    for (const net of nets) { // what reads nothing lies just above the first that reads it
      const index = net.from ? at.get(net.from) : -1;
      if (index < 0 || reads[index].length || !net.to.size) continue;
      layers[index] = Math.max(first, Math.min(...[...net.to].map((to) => layers[at.get(to)])) - 1);
    }
    return new Map(items.map((item, index) => [item, layers[index]]));
  };

  // -- Points: boxes, ports of the block, and bends ---------------------------------------------

  const pointsOf = (level, sizes, stacked) => {
    const items = [...level.items], nets = [...level.nets.values()];
    const first = nets.some((net) => !net.from) ? 1 : 0;
    const layers = layersOf(items, nets, first, stacked);
    const points = [], links = [], places = new Map();
    const add = (layer, width, more = {}) => {
      points.push({ layer, width, up: [], down: [], next: null, held: false, x: 0, ...more });
      return points[points.length - 1];
    };
    const link = (from, to, out = 0, into = 0) => {
      const made = { from, to, out, into };
      from.down.push(made);
      to.up.push(made);
      links.push(made);
      return made;
    };
    for (const item of items) {
      places.set(item, add(layers.get(item), sizes.get(item).w, { item, box: sizes.get(item) }));
    }
    const last = Math.max(first, ...layers.values()) + 1;
    const wires = nets.map((net) => {
      const start = net.from ? places.get(net.from) : add(0, 0, { enters: net.value });
      const out = start.box?.outs?.get(net.value) ?? 0;
      const ends = [...net.to].map((item) => places.get(item));
      if (net.leaves) ends.push(add(last, 0, { leaves: net.value }));
      const lowest = Math.max(...ends.map((end) => end.layer));
      const trunk = [start];
      for (let layer = start.layer + 1; layer < lowest; layer += 1) {
        const bend = add(layer, 0);
        link(trunk[trunk.length - 1], bend, trunk.length === 1 ? out : 0);
        if (trunk.length > 1) { trunk[trunk.length - 1].next = bend; bend.held = true; }
        trunk.push(bend);
      }
      const branches = ends.filter((end) => end.layer > start.layer).map((end) => {
        const above = trunk[end.layer - 1 - start.layer];
        return link(above, end, above === start ? out : 0, end.box?.ins?.get(net.value) ?? 0);
      });
      return { trunk, branches, out };
    });
    return { points, links, wires, layers: last + (nets.some((net) => net.leaves) ? 1 : 0) };
  };

  // -- The order within each layer --------------------------------------------------------------

  const crossings = (rows) => {
    let count = 0;
    for (const row of rows) {
      const ends = row.flatMap((point) =>
        point.down.map(({ to }) => to.rank).sort((one, two) => one - two));
      const tree = new Int32Array(Math.max(0, ...ends) + 2);
      ends.forEach((end, index) => {
        let before = 0;
        for (let at = end + 1; at > 0; at -= at & -at) before += tree[at];
        count += index - before;
        for (let at = end + 1; at < tree.length; at += at & -at) tree[at] += 1;
      });
    }
    return count;
  };

  const order = (rows) => {
    const number = (row) => row.forEach((point, index) => { point.rank = index; });
    const middle = (point, ways, end) => {
      const found = ways.map((way) => way[end].rank);
      return found.length ? found.reduce((sum, rank) => sum + rank, 0) / found.length : point.rank;
    };
    rows.forEach(number);
    if (rows.every((row) => row.length < 2)) return;
    let best = crossings(rows), kept = rows.map((row) => [...row]);
    for (let sort = 0; sort < SORTS && best > 0; sort += 1) {
      const down = sort % 2 === 0;
      for (const row of down ? rows : [...rows].reverse()) {
        for (const point of row) {
          point.want = down ? middle(point, point.up, "from") : middle(point, point.down, "to");
        }
        row.sort((one, two) => one.want - two.want);
        number(row);
      }
      const now = crossings(rows);
      if (now < best) { best = now; kept = rows.map((row) => [...row]); }
    }
    kept.forEach((row, index) => { rows[index] = row; number(row); });
  };

  // -- From left to right -----------------------------------------------------------------------

  const apart = (one, two) => (one.width + two.width) / 2 +
    (one.box || two.box ? (one.box && two.box ? BESIDE : BESIDE * 0.7) : WIRE);

  // Chains that hang straight down: bends of one value, and what is alone with what it reads.
  const columnsOf = (points) => {
    for (const point of points) {
      const below = point.down.length === 1 ? point.down[0].to : null;
      if (!point.next && below && below.up.length === 1 && !below.held) {
        point.next = below;
        below.held = true;
      }
    }
    return points.filter((point) => !point.held).map((top) => {
      const column = [];
      let shift = 0;
      for (let point = top; point; point = point.next) {
        column.push(point);
        point.shift = shift;
        const way = point.next && point.down.find((found) => found.to === point.next);
        if (way) shift += way.out - way.into;
      }
      return column;
    });
  };

  // Each layer moves as near to where its points want to be as the room between them allows: the
  // nearest places that keep the order are found by pooling neighbours that want to change places.
  const settle = (row) => {
    const pools = [];
    let offset = 0;
    row.forEach((point, index) => {
      if (index) offset += apart(row[index - 1], point);
      point.offset = offset;
      const weight = point.box ? HEAVY : 1; // wires give way
      let pool = { sum: (point.want - offset) * weight, weight, count: 1 };
      while (pools.length && pools[pools.length - 1].sum / pools[pools.length - 1].weight >
             pool.sum / pool.weight) {
        const before = pools.pop();
        pool = {
          sum: before.sum + pool.sum, weight: before.weight + pool.weight,
          count: before.count + pool.count,
        };
      }
      pools.push(pool);
    });
    let index = 0;
    for (const { sum, weight, count } of pools) {
      for (let member = 0; member < count; member += 1, index += 1) {
        row[index].x = sum / weight + row[index].offset;
      }
    }
  };

  const spread = (points, rows) => {
    for (const row of rows) {
      row.forEach((point, index) => {
        point.x = index ? row[index - 1].x + apart(row[index - 1], point) : 0;
      });
      const middle = row.length ? row[row.length - 1].x / 2 : 0;
      for (const point of row) point.x -= middle;
    }
    const columns = columnsOf(points);
    const wide = rows.some((row) => row.length > 1);
    const moves = wide ? MOVES : 4;
    for (let move = 0; move < moves; move += 1) {
      const early = !wide || move < MOVES / 2; // later on columns only become straight
      for (const column of columns) {
        let sum = 0, count = 0;
        const pull = (one, two, x) => { // what is read at once is worth being straight
          const weight = one.box && two.box ? HEAVY : 1;
          sum += x * weight;
          count += weight;
        };
        for (const point of column) {
          for (const { from, out, into } of point.up) {
            if (from.next !== point) pull(from, point, from.x + out - into - point.shift);
          }
          for (const { to, out, into } of point.down) {
            if (point.next !== to) pull(point, to, to.x + into - out - point.shift);
          }
        }
        const held = column.reduce((total, point) => total + point.x - point.shift, 0);
        const now = held / column.length;
        const pulled = count && (early || column.length === 1);
        const top = pulled ? (sum / count + now) / 2 : now;
        for (const point of column) point.want = top + point.shift;
      }
      rows.forEach(settle);
    }
  };

  // -- One block --------------------------------------------------------------------------------

  const tidy = (number) => Math.round(number * 2) / 2;

  const curve = (x, y, toX, toY) => {
    if (Math.abs(toX - x) < 1) return `L${tidy(toX)} ${tidy(toY)}`;
    const middle = tidy((y + toY) / 2);
    return `C${tidy(x)} ${middle} ${tidy(toX)} ${middle} ${tidy(toX)} ${tidy(toY)}`;
  };

  const heightsOf = (rows, links, top) => {
    const reach = rows.map(() => 0);
    for (const { from, to, out, into } of links) {
      reach[from.layer] = Math.max(reach[from.layer], Math.abs(from.x + out - to.x - into));
    }
    let y = top;
    return rows.map((row, layer) => {
      const found = { top: y, bottom: y + Math.max(0, ...row.map(({ box }) => box?.h ?? 0)) };
      y = found.bottom + BETWEEN + Math.min(34, reach[layer] / 9);
      return found;
    });
  };

  const linesOf = (wires, heights) => {
    const lines = [];
    for (const { trunk, branches, out } of wires) {
      const [start] = trunk;
      const bottom = start.box ? heights[start.layer].top + start.box.h : heights[start.layer].top;
      let x = start.x + out;
      let path = `M${tidy(x)} ${tidy(bottom)}`;
      if (heights[start.layer].bottom > bottom) path += `V${tidy(heights[start.layer].bottom)}`;
      for (const bend of trunk.slice(1)) {
        path += curve(x, heights[bend.layer - 1].bottom, bend.x, heights[bend.layer].top);
        x = bend.x;
        path += `V${tidy(heights[bend.layer].bottom)}`;
      }
      if (/[LCV]/.test(path)) lines.push({ path, arrow: false });
      for (const { from, to, out: leaves, into } of branches) {
        const y = heights[from.layer].bottom, end = to.x + into;
        lines.push({
          path: `M${tidy(from.x + leaves)} ${tidy(y)}` +
            curve(from.x + leaves, y, end, heights[to.layer].top),
          arrow: Boolean(to.box),
        });
      }
    }
    return lines;
  };

  const layOut = (level, sizes, { framed, stacked, label }) => {
    const { points, links, wires, layers } = pointsOf(level, sizes, stacked);
    const rows = Array.from({ length: layers }, () => []);
    for (const point of points) rows[point.layer].push(point);
    order(rows);
    spread(points, rows);
    const left = Math.min(0, ...points.map((point) => point.x - point.width / 2));
    const right = Math.max(0, ...points.map((point) => point.x + point.width / 2));
    const pad = framed ? PAD : MARGIN;
    const width = Math.max(right - left, label) + 2 * pad;
    const shift = tidy((width - right - left) / 2);
    for (const point of points) point.x += shift;
    const enters = points.some((point) => point.enters);
    const heights = heightsOf(rows, links, framed ? BAR + (enters ? 0 : PAD) : MARGIN);
    const leaves = points.some((point) => point.leaves);
    const deepest = heights.length ? heights[heights.length - 1].bottom : 0;
    const h = Math.ceil(leaves ? deepest : deepest + pad);
    if (leaves) heights[heights.length - 1] = { top: h, bottom: h };
    const port = (kind) => new Map(
      points.filter((point) => point[kind]).map((point) => [point[kind], point.x - width / 2]));
    return {
      w: width, h, framed, points: points.length, ins: port("enters"), outs: port("leaves"),
      lines: linesOf(wires, heights),
      boxes: points.filter(({ item }) => item).map(({ item, x, layer, box }) => ({
        item, x: tidy(x - box.w / 2), y: tidy(heights[layer].top), w: box.w, h: box.h, inner: box,
      })),
    };
  };

  // -- The whole graph --------------------------------------------------------------------------

  // Of a graph, some blocks of which are open, the layout of its root; `inner` of a box that is an
  // open block is the layout of that.
  const whole = (graph, open, shapes) => {
    const levels = graph.levels(open);
    const sizes = new Map();
    const small = { w: BOX.w, h: BOX.h + (shapes ? BOX.shape : 0) };
    const deepest = [...levels.keys()].sort((one, two) => two.number - one.number);
    for (const block of deepest) { // a block's number is above that of what it lies in
      const level = levels.get(block);
      for (const item of level.items) if (!sizes.has(item)) sizes.set(item, small);
      const framed = block !== graph.root;
      const stacked = block.number === 0;
      sizes.set(block, layOut(level, sizes, { framed, stacked, label: framed ? BOX.w : 0 }));
    }
    return sizes.get(graph.root);
  };

  return { whole, BOX, BAR };
})();
