// The explorer in the browser: a canvas for pixels, real controls around it, no library. It draws the bytes that
// explorer_data.py packs, and says what explorer_words.py says.

const { abs, ceil, floor, max, min, round, sqrt } = Math;
const range = (n) => [...Array(n).keys()];
const VIEWS = { overlay: "On the image", grid: "All heads", film: "Tokens", compare: "Compare", ablate: "Silence heads" };
const GAP = 14, TOP = 24, BAR = 12;

// bytes

function unbundle(view) {
	const size = view.getUint32(0, true);
	const text = new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + 4, size));
	const header = JSON.parse(text), arrays = {};
	for (const [name, [type, offset, shape]] of Object.entries(header.arrays)) {
		const kind = { u1: Uint8Array, f4: Float32Array, i4: Int32Array }[type];
		const start = view.byteOffset + 4 + size + offset, bytes = shape.reduce((a, b) => a * b, kind.BYTES_PER_ELEMENT);
		arrays[name] = Object.assign(new kind(view.buffer.slice(start, start + bytes)), { shape });
	}
	return { header, arrays };
}

// numbers

const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
const cellOf = (at, fine, coarse) => min(coarse - 1, floor(((2 * at + 1) * coarse) / (2 * fine)));
const same = (a, b) => a[0] === b[0] && a[1] === b[1];

const asking = (s) => JSON.stringify([s.query, s.back]);

class Maps {
	constructor(view) {
		const { header, arrays } = unbundle(view);
		Object.assign(this, header, arrays);
		this.answers = new Map();
		this.pictures = {};
		this.scratch = document.createElement("canvas");
	}

	// The number of the chosen token among the layer's queries, or among its keys when s.back; -1 when it has none.
	number(l, s) {
		const layer = this.layers[l], [prefix, grid] = layer[s.back ? "keys" : "asks"];
		if (s.token) return layer.names.slice(0, prefix).indexOf(s.query);
		if (!grid[0]) return -1;
		const [row, column] = s.query.map((at, i) => cellOf(at, this.patches[i], grid[i]));
		return prefix + row * grid[1] + column;
	}

	// One head's map, or null: shares for the cells of a grid, and for the tokens that are no patches.
	one(l, head, s) {
		const layer = this.layers[l], i = layer.drawn ? this.number(l, s) : -1, { back } = s;
		if (i < 0) return null;
		const [count, grid] = layer[back ? "asks" : "keys"];
		const cells = new Float64Array(grid[0] * grid[1]), extra = new Float64Array(count);
		const look = { cells, grid, extra, names: layer.names.slice(0, count) };
		const held = layer.served ? this.answers.get(asking(s)) : this;
		if (!held) return { ...look, waiting: true };
		const shares = held[`shares${l}`], scales = held[`scales${l}`], prefix = held[`prefix${l}`];
		const [, queries, keys] = shares.shape, first = head * queries, P = prefix.shape[2];
		const windows = this[`windows${l}`];
		if (windows) {
			const members = windows.shape[1], slot = windows.indexOf(i), start = slot - (slot % members);
			for (let m = 0; m < members; m++) {
				if (windows[start + m] < 0) continue;
				const q = first + (back ? start + m : slot);
				cells[windows[start + m]] = (shares[q * keys + (back ? slot % members : m)] * scales[q]) / 255;
			}
		} else if (back && !layer.served) {
			for (let q = 0; q < queries; q++) {
				const at = first + q;
				const value = i < P ? prefix[at * P + i] : (shares[at * keys + i - P] * scales[at]) / 255;
				if (q < count) extra[q] = value;
				else cells[q - count] = value;
			}
		} else {
			const at = first + (layer.served ? 0 : i), scale = scales[at]; // an answer holds one vector a head
			for (let k = 0; k < keys; k++) cells[k] = (shares[at * keys + k] * scale) / 255;
			for (let p = 0; p < P; p++) extra[p] = prefix[at * P + p];
		}
		return look;
	}

	look(l, s) {
		const layer = this.layers[l], { head } = s;
		if (!layer || (head === "rollout" && !layer.rollout)) return null;
		if (head === "rollout") return this.one(l, layer.heads, s);
		if (typeof head === "number") return this.one(l, min(head, layer.heads - 1), s);
		const total = this.one(l, 0, s);
		if (!total) return null;
		const join = (into, values) => {
			for (let i = 0; i < into.length; i++) into[i] = head === "mean" ? into[i] + values[i] : max(into[i], values[i]);
		};
		for (let h = 1; h < layer.heads; h++) {
			const more = this.one(l, h, s);
			join(total.cells, more.cells);
			join(total.extra, more.extra);
		}
		if (head !== "mean") return total;
		return { ...total, cells: total.cells.map((v) => v / layer.heads), extra: total.extra.map((v) => v / layer.heads) };
	}

	// All heads of all layers for one query, and the largest share among them; kept until the query changes.
	all(s) {
		const key = asking(s);
		if (this.kept?.key === key && !this.kept.waiting) return this.kept;
		const looks = this.layers.map((layer, l) => range(layer.heads).map((h) => this.one(l, h, s)));
		let best = 0, where = null, waiting = false;
		looks.forEach((heads, l) =>
			heads.forEach((look, h) => {
				if (!look) return;
				waiting ||= look.waiting;
				for (let i = 0; i < look.cells.length; i++) if (look.cells[i] > best) [best, where] = [look.cells[i], [l, h, i, look.grid]];
			}),
		);
		return (this.kept = { key, looks, best, where, waiting });
	}
}

// words

const tenths = (n) => `${floor(n / 10)}.${n % 10} %`;
const percent = (share) => tenths(floor(share * 1000 + 0.5));
const signed = (share) => (share < 0 ? `−${percent(-share)}` : percent(share));
const rowColumn = ([row, column]) => `row ${row}, column ${column}`;
const place = (query) => (typeof query === "string" ? `the ${query} token` : `the patch in ${rowColumn(query)}`);
const cellAtIndex = (i, grid) => [floor(i / grid[1]), i % grid[1]];
const spot = (maps, i, grid) => rowColumn(cellAtIndex(i, grid)) + (same(grid, maps.patches) ? "" : ` of ${grid[0]} × ${grid[1]}`);
const headWords = (head, count) =>
	typeof head === "number"
		? `head ${min(head, count - 1)}`
		: { mean: `mean over ${count} heads`, max: `maximum over ${count} heads` }[head] ?? "rollout";
const shownHead = (maps, s) => `layer ${s.layer}, ${headWords(s.head, maps.layers[s.layer]?.heads)}`;
const starts = (maps, s) => `L${shownHead(maps, s).slice(1)}: ${place(s.query)}`;

function nothing(maps, l, s) {
	if (maps.why) return maps.why;
	const layer = maps.layers[l];
	if (!layer.drawn) return `Layer ${l}: ${layer.says}`;
	if (maps.number(l, s) >= 0)
		return `Layer ${l}: rollout multiplies layers, and these layers do not all mix the same tokens.`;
	if (s.token) return `Layer ${l} has no ${s.query} token; choose a patch.`;
	return `In layer ${l} no patch asks; choose the ${layer.names[0]} token.`;
}

function sayOverlay(maps, s, look) {
	if (!look) return nothing(maps, s.layer, s);
	const start = starts(maps, s);
	const best = argmax(look.cells), at = spot(maps, best, look.grid), most = percent(look.cells[best]);
	if (s.back) {
		if (!look.cells[best]) return `${start} is looked at by no patch.`;
		const first = look.names.length ? `; the ${look.names[0]} token gives it ${percent(look.extra[0])}` : "";
		return `${start} is looked at most by ${at}, which gives it ${most} of its attention${first}.`;
	}
	if (!look.cells[best]) return `${start} looks at no patch: its token was dropped before this layer.`;
	let end = "";
	if (look.names.length && s.head !== "max") {
		const n = look.names.length, whom = n === 1 ? `the ${look.names[0]} token` : `the ${n} tokens that are no patches`;
		end = `; ${percent(look.extra.reduce((a, b) => a + b, 0))} of its attention goes to ${whom}`;
	}
	return `${start} looks most at ${at} (${most})${end}.`;
}

function sayGrid(maps, s) {
	if (maps.why) return maps.why;
	const { best, where } = maps.all(s);
	const asks = s.back ? `Who looks at ${place(s.query)}` : `Where ${place(s.query)} looks`;
	let found = "there is nothing to show";
	if (where) {
		const [l, h, i, grid] = where;
		found = `the strongest share is ${percent(best)}, in layer ${l}, head ${h} at ${spot(maps, i, grid)}`;
	}
	return `${asks}, in all ${maps.layers.length} layers: ${found}.${maps.sorted[s.sort]}`;
}

function sizesOf(labels) {
	const sizes = new Map();
	for (const label of labels) if (label >= 0) sizes.set(label, (sizes.get(label) ?? 0) + 1);
	return sizes;
}

function sayFilm(maps, s) {
	const { film } = maps, said = maps.filmWords[s.step];
	if (!film || s.token) return said;
	const now = film.subarray(s.step * film.shape[1]), label = now[s.query[0] * maps.patches[1] + s.query[1]];
	const who = `T${place(s.query).slice(1)}`, others = label < 0 ? 0 : sizesOf(now.subarray(0, film.shape[1])).get(label) - 1;
	if (label < 0) return `${said} ${who} was dropped.`;
	return `${said} ${who} ${others ? `shares its token with ${others} more` : "has a token of its own"}.`;
}

const otherLayer = (maps, other, l) => floor((l * other.layers.length) / maps.layers.length);

function sayCompare(maps, other, s, looks) {
	const told = [];
	for (const [side, l, look] of [[maps, s.layer, looks[0]], [other, otherLayer(maps, other, s.layer), looks[1]]]) {
		if (!look) return `${side.name}: ${nothing(side, l, s)}`;
		const best = argmax(look.cells);
		const where = look.cells[best] ? spot(side, best, look.grid) : "no patch";
		told.push(`${where} in ${side.name} (${percent(look.cells[best])})`);
	}
	const verb = s.back ? "is looked at most by" : "looks most at";
	return `${starts(maps, s)} ${verb} ${told[0]} and ${told[1]}; ${differenceWords(...looks)}.`;
}

function differenceWords(a, b) {
	if (!same(a.grid, b.grid)) return "their grids differ, so there is no difference map";
	return `no share differs by more than ${percent(a.cells.reduce((most, v, i) => max(most, abs(v - b.cells[i])), 0))}`;
}

// pixels

const rgb = (r, g, b) => 0xff000000 | (b << 16) | (g << 8) | r;

function canvasOf(width, height, fill, canvas = document.createElement("canvas")) {
	if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
	const ctx = canvas.getContext("2d"), data = ctx.createImageData(width, height);
	fill(new Uint32Array(data.data.buffer));
	ctx.putImageData(data, 0, 0);
	return canvas;
}

const shade = (value, low, high) => (high > low ? min(255, max(0, floor(((value - low) / (high - low)) * 255 + 0.5))) : 0);

const paletteOf = (colours) => (colours.palette ??= range(256).map((i) => rgb(...colours.subarray(3 * i, 3 * i + 3))));

// Maps side by side; `highOf` is where the colours of each end.
function heat(looks, low, highOf, colours, canvas) {
	const [h, w] = looks[0].grid, palette = paletteOf(colours);
	const fill = (data) =>
		looks.forEach(({ cells }, n) => {
			const high = highOf(cells);
			for (let i = 0; i < h * w; i++) data[floor(i / w) * w * looks.length + n * w + (i % w)] = palette[shade(cells[i], low, high)];
		});
	return canvasOf(w * looks.length, h, fill, canvas);
}

function picture(maps, grey = "") {
	const { pixels } = maps, [h, w] = pixels.shape;
	return (maps.pictures[grey] ??= canvasOf(w, h, (data) => {
		for (let i = 0; i < h * w; i++) {
			const [r, g, b] = pixels.subarray(3 * i, 3 * i + 3), y = 0.299 * r + 0.587 * g + 0.114 * b;
			data[i] = grey ? rgb(y, y, y) : rgb(r, g, b);
		}
	}));
}

// A colour that a merged token keeps while it lives.
const tint = (label, alpha) => `hsl(${(label * 137.508) % 360} 75% ${45 + 12 * (label % 3)}% / ${alpha})`;

class Brush {
	constructor(ctx, ink) {
		Object.assign(this, { ctx, ink });
	}

	text(words, x, y, { font = "12px", align = "left", width = 1e9, fill } = {}) {
		const { ctx } = this;
		Object.assign(ctx, { font: `${font} system-ui, sans-serif`, fillStyle: fill ?? this.ink, textAlign: align, textBaseline: "middle", lineWidth: 3, strokeStyle: "#000" });
		let shown = String(words);
		while (shown.length > 1 && ctx.measureText(shown).width > width) shown = `${shown.replace(/…$/, "").slice(0, -1)}…`;
		if (fill) ctx.strokeText(shown, x, y);
		ctx.fillText(shown, x, y);
	}

	title(words, x, width) {
		this.text(words, x, 10, { font: "600 13px", width });
	}

	// A canvas, or one of `count` maps that stand side by side on it.
	image(canvas, [x, y, w, h], alpha = 1, sharp = canvas.width * 3 <= w, count = 1, number = 0) {
		this.ctx.globalAlpha = alpha;
		this.ctx.imageSmoothingEnabled = !sharp;
		const wide = canvas.width / count;
		this.ctx.drawImage(canvas, number * wide, 0, wide, canvas.height, x, y, w, h);
		this.ctx.globalAlpha = 1;
	}

	// Two strokes, so that an outline shows on any colour.
	outline([x, y, w, h], { dash = [], inner = "#fff", width = 2 } = {}) {
		const { ctx } = this;
		if (w < 16) [x, y, w, h] = [x - 3, y - 3, w + 6, h + 6]; // around a small cell, not over it
		for (const [colour, line] of [["#000", width + 2], [inner, width]]) {
			ctx.strokeStyle = colour;
			ctx.lineWidth = line;
			ctx.setLineDash(colour === "#000" ? [] : dash);
			ctx.strokeRect(x, y, w, h);
		}
		ctx.setLineDash([]);
	}

	// The border of the true object: lines from (x, y) to (x, y), in pixels of the image.
	border({ border, pixels }, [x, y, w, h]) {
		if (!border) return;
		const { ctx } = this, [rows, columns] = pixels.shape, path = new Path2D();
		for (let i = 0; i < border.length; i += 2)
			path[i % 4 ? "lineTo" : "moveTo"](x + (border[i] * w) / columns, y + (border[i + 1] * h) / rows);
		for (const [colour, width] of [["#000", 3.5], ["#ff7f0e", 1.8]]) {
			ctx.strokeStyle = colour;
			ctx.lineWidth = width;
			ctx.stroke(path);
		}
	}

	bar([x, y, w], colours, low, high, words) {
		const strip = canvasOf(256, 1, (data) => data.set(paletteOf(colours)));
		this.image(strip, [x, y, w, BAR]);
		const number = (v) => `${low < 0 && v > 0 ? "+" : ""}${signed(v)}`;
		["left", "center", "right"].forEach((align, i) => {
			if (w > 170 || i !== 1) this.text(number(low + ((high - low) * i) / 2), x + (w * i) / 2, y + BAR + 11, { align });
		});
		if (words) this.text(words, x, y + BAR + 28, { width: w });
	}
}

// views: each plans its height and what a click means, and then paints

function cellBox([x, y, w, h], [row, column], [rows, columns]) {
	const left = round((column * w) / columns), top = round((row * h) / rows);
	return [x + left, y + top, round(((column + 1) * w) / columns) - left, round(((row + 1) * h) / rows) - top];
}
const within = ([x, y, w, h], px, py) => px >= x && py >= y && px < x + w && py < y + h;
const cellAt = (box, [rows, columns], px, py) =>
	within(box, px, py) && [floor(((py - box[1]) * rows) / box[3]), floor(((px - box[0]) * columns) / box[2])];

// The cells that may be asked about in a layer; the finest patches where it has none.
function gridOf(maps, l, back) {
	const [, grid] = maps.layers[l]?.[back ? "keys" : "asks"] ?? [];
	return grid?.[0] ? grid : maps.patches;
}

function markQuery(brush, maps, l, s, box) {
	if (s.token || maps.why) return;
	const grid = gridOf(maps, l, s.back), cell = s.query.map((at, i) => cellOf(at, maps.patches[i], grid[i]));
	brush.outline(cellBox(box, cell, grid));
}

function panelSize(maps, W, count, most = 460) {
	const [h, w] = maps.pixels.shape;
	const width = floor(min((W - GAP * (count - 1)) / count, most, (most * w) / h));
	return [width, round((width * h) / w)];
}

const asked = (s) => (s.back ? "who looks at it" : "where it looks");

function patchHit(maps, boxes) {
	return (x, y) => {
		const query = boxes.map((box) => cellAt(box, maps.patches, x, y)).find(Boolean);
		return query && { query };
	};
}

function readOut(box, look) {
	return (x, y) => {
		const cell = look && cellAt(box, look.grid, x, y);
		return cell ? `${rowColumn(cell)}: ${signed(look.cells[cell[0] * look.grid[1] + cell[1]])}` : "";
	};
}

function heatPanel(brush, maps, l, s, look, box, high) {
	brush.image(picture(maps, "grey"), box);
	const best = look && argmax(look.cells), some = look && look.cells[best] > 0;
	if (some) brush.image(heat([look], 0, () => high, maps.cividis), box, s.opacity, true);
	brush.border(maps, box);
	if (some) brush.outline(cellBox(box, cellAtIndex(best, look.grid), look.grid), { dash: [4, 4], width: 1.5 });
	markQuery(brush, maps, l, s, box);
}

function overlay(maps, s, W) {
	const look = maps.look(s.layer, s), two = W >= 480;
	const [w, h] = panelSize(maps, W, two ? 2 : 1), box = [two ? w + GAP : 0, TOP, w, h], first = [0, TOP, w, h];
	const shared = s.scale === "shared" && s.head !== "rollout" && look;
	return {
		look,
		waiting: look?.waiting || (shared && maps.all(s).waiting),
		height: TOP + h + 62,
		hit: patchHit(maps, [first, box]),
		read: readOut(box, look),
		say: () => sayOverlay(maps, s, look),
		high: () => (shared ? maps.all(s).best : look ? max(...look.cells) : 0),
		paint(brush) {
			const high = this.high();
			if (two) {
				brush.title("the image", 0, w);
				brush.image(picture(maps), first);
				markQuery(brush, maps, s.layer, s, first);
				const legend = ["white: the chosen patch", "dashed: the strongest"].concat(maps.border ? "orange: the true object" : []);
				brush.text(legend.join(" · "), 0, TOP + h + 14, { width: w });
			}
			brush.title(look ? `${asked(s)}: ${shownHead(maps, s)}` : "no map", box[0], w);
			heatPanel(brush, maps, s.layer, s, look, box, high);
			const what = s.head === "rollout" ? "share of what the token is made of" : "share of attention";
			if (look) brush.bar([box[0], TOP + h + 8, w], maps.cividis, 0, high, shared ? `${what}, one scale for all layers and heads` : what);
		},
	};
}

function grid(maps, s, W) {
	const { looks, best, waiting } = maps.all(s), shared = s.scale === "shared", { cividis } = maps;
	const [w, h] = panelSize(maps, W, 1, max(110, min(200, W / 4))), box = [0, TOP, w, h], left = w + GAP + 58;
	const most = max(1, ...maps.layers.map((layer) => layer.heads)), fits = max(56, 640 / maps.layers.length);
	const side = max(8, min(fits, floor((W - left) / most) - 3)), tall = max(8, round((side * h) / w));
	const gap = s.sort === "head" ? 3 : 17, cells = [], tops = [TOP + 15 + gap], tallOf = (l) => (looks[l][0] ? tall : 13);
	maps.layers.forEach((_, l) => tops.push(tops[l] + tallOf(l) + gap));
	maps.layers.forEach((layer, l) =>
		[...(maps[s.sort + l] ?? range(layer.heads))].forEach((head, i) => cells.push({ layer: l, head, box: [left + i * (side + 3), tops[l], side, tallOf(l)] })),
	);
	const find = (x, y) => cells.find((cell) => within(cell.box, x, y));
	return {
		waiting,
		height: max(TOP + h + 66, tops.at(-1)),
		hit(x, y) {
			const cell = find(x, y), at = cellAt(box, maps.patches, x, y);
			return cell ? { layer: cell.layer, head: cell.head, view: "overlay" } : at && { query: at };
		},
		read(x, y) {
			const { layer, head } = find(x, y) ?? {}, habits = maps[`habits${layer}`];
			if (!habits) return "";
			const [nats, far] = [habits[head], habits[maps.layers[layer].heads + head]];
			return `layer ${layer}, head ${head}: entropy ${nats.toFixed(2)} nats, looks ${far.toFixed(0)} pixels far (means over all queries)`;
		},
		say: () => sayGrid(maps, s),
		paint(brush) {
			brush.title("the image", 0, w);
			brush.image(picture(maps), box);
			markQuery(brush, maps, s.layer, s, box);
			brush.bar([0, TOP + h + 8, w], cividis, 0, shared ? best : 1, shared ? "share of attention" : "of each map's largest share");
			brush.title(`${asked(s)}: heads to the right, layers down`, w + GAP, W - w - GAP);
			const label = (words, x, y, align = "center") => brush.text(words, x, y, { align });
			maps.layers.forEach((layer, l) => {
				const y = tops[l] + tallOf(l) / 2;
				label(`layer ${l}`, left - 8, y, "right");
				if (!looks[l][0]) label(layer.drawn ? "no such token here" : "no map on the image", left, y, "left");
			});
			let strip;
			if (s.sort === "head") range(most).forEach((head) => label(head, left + head * (side + 3) + side / 2, TOP + 8));
			cells.forEach(({ layer, head, box: spot }, i) => {
				const row = looks[layer], high = (values) => (shared ? best : max(...values));
				if (s.sort !== "head" && row[0]) label(head, spot[0] + side / 2, spot[1] - 8);
				if (layer !== cells[i - 1]?.layer && row[0]) strip = heat(row, 0, high, cividis, maps.scratch);
				if (row[0]) brush.image(strip, spot, 1, row[0].grid[1] <= side, row.length, head);
				if (layer === s.layer && head === s.head) brush.outline(spot, { inner: "#ff7f0e" });
			});
		},
	};
}

function film(maps, s, W, t) {
	const labels = maps.film, beside = W >= 620, [w, h] = panelSize(maps, W, beside ? 2 : 1, 400), box = [0, TOP, w, h];
	const plain = { height: TOP + h + 8, hit: patchHit(maps, [box]), read: () => "", say: () => sayFilm(maps, s) };
	if (!labels) return { ...plain, paint: (brush) => brush.image(picture(maps), box) };
	const [steps, patches] = labels.shape, at = (step) => labels.subarray(step * patches, (step + 1) * patches);
	const left = beside ? w + 2 * GAP : 0, top = beside ? TOP : TOP + h + 12, ratio = h / w;
	const columns = beside ? ceil(sqrt(1.8 * steps)) : floor((W + 8) / 84), room = (h / ceil(steps / columns) - 40) / ratio;
	const side = max(24, floor(min(150, (W - left) / columns - 8, beside ? room : 150))), tall = round(side * ratio);
	const thumbs = range(steps).map((i) => [left + (i % columns) * (side + 8), top + floor(i / columns) * (tall + 40), side, tall]);
	return {
		...plain,
		height: max(TOP + h, thumbs.at(-1)[1] + tall + 34) + 8,
		hit(x, y) {
			const step = thumbs.findIndex((thumb) => within(thumb, x, y));
			return step >= 0 ? { step } : plain.hit(x, y);
		},
		paint(brush) {
			brush.title(`tokens ${s.step < steps - 1 ? `before layer ${s.step}` : "after the last layer"}`, 0, w);
			if (beside) brush.title("dark: dropped · coloured: merged · a number: the patches of a merged token", left, W - left);
			frame(brush, maps, at(s.step), box, s, t, at(max(0, s.step - 1)));
			thumbs.forEach((thumb, i) => {
				frame(brush, maps, at(i), thumb, s);
				if (i === s.step) brush.outline(thumb, { inner: "#ff7f0e", width: 3 });
				const lines = [i < steps - 1 ? `before ${i}` : "at the end", `${sizesOf(at(i)).size} tokens`];
				lines.forEach((line, n) => brush.text(line, thumb[0], thumb[1] + tall + 11 + 15 * n, { font: i === s.step ? "700 12px" : "12px", width: side + 4 }));
			});
		},
	};
}

// Dropped patches are dark, merged ones wear their token's colour; `before` fades over into `now`, a thumbnail has none.
function frame(brush, maps, now, box, s, t = 1, before = null) {
	const { ctx } = brush, grid = maps.patches, sizes = sizesOf(now), was = sizesOf(before ?? []), named = new Set();
	const boxOf = (i) => cellBox(box, cellAtIndex(i, grid), grid), merged = (i) => sizes.get(now[i]) > 1;
	brush.image(picture(maps), box);
	now.forEach((label, i) => {
		if (label >= 0 && !merged(i)) return;
		const old = !before || (label < 0 ? before[i] < 0 : before[i] === label && was.get(label) > 1);
		ctx.fillStyle = label < 0 ? `rgb(0 0 0 / ${0.86 * (old ? 1 : t)})` : tint(label, (0.15 + 0.7 * s.opacity) * (old ? 1 : t));
		ctx.fillRect(...boxOf(i));
	});
	ctx.fillStyle = "#fff";
	const thick = before ? 2 : 1, unlike = (i, j) => now[i] !== now[j] && (merged(i) || merged(j));
	now.forEach((_, i) => {
		const [x, y, w, h] = boxOf(i);
		if ((i + 1) % grid[1] && unlike(i, i + 1)) ctx.fillRect(x + w - thick / 2, y, thick, h);
		if (i + grid[1] < now.length && unlike(i, i + grid[1])) ctx.fillRect(x, y + h - thick / 2, w, thick);
	});
	if (!before) return;
	now.forEach((label, i) => {
		if (!merged(i) || named.has(label)) return;
		named.add(label);
		const [x, y, w, h] = boxOf(i), font = `700 ${max(9, min(16, h / 2))}px`;
		brush.text(sizes.get(label), x + w / 2, y + h / 2, { font, align: "center", fill: "#fff" });
	});
	if (s.token) return;
	const chosen = s.query[0] * grid[1] + s.query[1];
	now.forEach((label, i) => label >= 0 && label === now[chosen] && i !== chosen && brush.outline(boxOf(i), { dash: [4, 4], width: 1.5 }));
	brush.outline(boxOf(chosen));
}

function compare(maps, s, W, t, other) {
	const sides = [[maps, s.layer], [other, otherLayer(maps, other, s.layer)]];
	const looks = sides.map(([side, l]) => side.look(l, s)), [a, b] = looks;
	const [w, h] = panelSize(maps, W, 3), boxes = range(3).map((i) => [i * (w + GAP), TOP, w, h]);
	const gap = a && b && same(a.grid, b.grid) ? { ...a, cells: b.cells.map((v, i) => v - a.cells[i]) } : null;
	const high = max(0, ...looks.map((look) => (look ? max(...look.cells) : 0)));
	return {
		look: a,
		high: () => high,
		waiting: a?.waiting || b?.waiting,
		height: TOP + h + 64,
		hit: patchHit(maps, boxes),
		read: (x, y) => [a, b, gap].map((look, i) => readOut(boxes[i], look)(x, y)).join(""),
		say: () => sayCompare(maps, other, s, looks),
		paint(brush) {
			[...sides.map(([side]) => side.name), gap ? `${other.name} minus ${maps.name}` : "no difference map"].forEach((words, i) =>
				brush.title(words, boxes[i][0], w),
			);
			sides.forEach(([side, l], i) => heatPanel(brush, side, l, s, looks[i], boxes[i], high));
			brush.bar([0, TOP + h + 8, 2 * w + GAP], maps.cividis, 0, high, `${asked(s)}: ${shownHead(maps, s)}; one scale for both`);
			brush.image(picture(maps, "grey"), boxes[2]);
			if (!gap) return;
			const most = max(1e-9, ...gap.cells.map(abs));
			brush.image(heat([gap], -most, () => most, maps.PuOr), boxes[2], s.opacity, true);
			markQuery(brush, maps, s.layer, s, boxes[2]);
			brush.bar([boxes[2][0], TOP + h + 8, w], maps.PuOr, -most, most, "change of the share");
		},
	};
}

const PLANS = { overlay, grid, film, compare };

// the widget

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const SHOWN = {
	overlay: "layer head direction scale opacity",
	grid: "direction scale sort",
	film: "step play opacity",
	compare: "layer head direction opacity",
	ablate: "",
};
const clock = () => performance.now();
const plain = (text) => (/^\d+$/.test(text) ? Number(text) : text);

function make(tag, props = {}, ...children) {
	const made = document.createElement(tag);
	for (const [name, value] of Object.entries(props)) name in made ? (made[name] = value) : made.setAttribute(name, value);
	made.append(...children);
	return made;
}

const group = (name, ...children) => make("div", { className: "group", role: "group", "aria-label": name }, ...children);
const button = (words, onclick, props) => make("button", { type: "button", textContent: words, onclick, ...props });
const options = (select, choices) => select.replaceChildren(...choices.map(([value, textContent]) => make("option", { value, textContent })));

function render({ model, el }) {
	const get = (name) => model.get(name);
	const canvas = make("canvas", { tabIndex: 0, role: "application" }), ctx = canvas.getContext("2d");
	const stage = make("div", { className: "stage" }, canvas), heads = group("Heads to silence"), tokens = group("Tokens that are no patches");
	const says = make("p", { className: "says", role: "status", "aria-live": "polite" });
	const caption = make("p", { className: "caption" }), read = make("p", { className: "read", "aria-hidden": "true" });
	const alone = Boolean(get("alone")), calm = matchMedia("(prefers-reduced-motion: reduce)");
	let maps, other = null, busy = false, lastPatch = null, playing = null, tween = 1, plan = null, waitsFor = "", aside = "", current = "0,0";

	function state() {
		const s = {};
		for (const name of ["view", "query", ...Object.keys(inputs)]) s[name] = get(name);
		return Object.assign(s, { back: s.direction === "looked at by", token: typeof s.query === "string" });
	}

	function apply(changes, began = clock()) {
		busy = true;
		for (const [name, value] of Object.entries(changes)) model.set(name, value);
		busy = false;
		draw(began);
		model.save_changes();
	}

	// controls

	const views = {}, inputs = {}, rows = {}, outs = { layer: make("output"), step: make("output") };
	for (const [view, words] of Object.entries(VIEWS)) views[view] = button(words, () => apply({ view }));
	const row = (name, words, control) => {
		control[control.type === "range" ? "oninput" : "onchange"] = () => apply({ [name]: plain(control.value) });
		inputs[name] = control;
		rows[name] = make("label", {}, make("span", { textContent: words }), control, outs[name] ?? "");
	};
	const range01 = (props) => make("input", { type: "range", min: 0, step: 1, ...props });
	row("image", "Image", make("select"));
	row("layer", "Layer", range01());
	row("head", "Head", make("select"));
	row("direction", "Show", make("select"));
	row("step", "Step", range01());
	const play = (rows.play = button("Play", () => toggle()));
	row("sort", "Sort heads", make("select"));
	row("scale", "Colour scale", make("select"));
	row("opacity", "Colour over image", range01({ max: 1, step: 0.05 }));
	const keys = make("p", { className: "keys" });
	const root = make("div", { className: "labkit-explorer", "data-lm-suppress-shortcuts": "true" },
		group("View", ...Object.values(views)), caption, group("Settings", ...Object.values(rows)), tokens, stage, heads, says, read, keys);

	function load() {
		const [bytes, others] = [get("data"), get("other")];
		if (!bytes?.byteLength) return;
		maps = new Maps(bytes);
		other = others?.byteLength ? new Maps(others) : null;
		waitsFor = "";
		const { names, layers } = maps;
		[caption.textContent, keys.textContent] = [maps.caption, maps.help];
		inputs.layer.max = max(0, layers.length - 1);
		inputs.step.max = maps.film ? maps.film.shape[0] - 1 : 0;
		for (const [name, choices] of Object.entries(maps.choices)) options(inputs[name], Object.entries(choices));
		options(inputs.image, get("titles"));
		tokens.replaceChildren(...names.map((name) => make("button", { type: "button", onclick: () => apply({ query: name }) }, make("i"), make("span"))));
		rows.image.hidden = get("titles").length < 2;
		views.compare.hidden = !other;
		views.film.hidden = !maps.film;
		views.ablate.hidden = !get("outcome").classes;
		if (!views.ablate.hidden) buildHeads();
	}

	function controls(s) {
		for (const [view, made] of Object.entries(views)) made.setAttribute("aria-pressed", view === s.view);
		for (const name in rows) if (name !== "image") rows[name].hidden = !SHOWN[s.view].split(" ").includes(name);
		const layer = maps.layers[s.layer], count = layer?.heads ?? 1;
		const joined = { mean: "mean over heads", max: "maximum over heads", ...(layer?.rollout && { rollout: "rollout through layers" }) };
		const kinds = [...Object.entries(joined), ...range(count).map((head) => [head, `head ${head}`])];
		if (kinds.length !== inputs.head.length) options(inputs.head, kinds);
		for (const name in inputs) inputs[name].value = s[name];
		if (typeof s.head === "number") inputs.head.value = min(s.head, count - 1);
		for (const name in outs) outs[name].textContent = `${s[name]} of 0–${inputs[name].max}`;
		read.textContent = aside = (/overlay|compare/.test(s.view) && layer?.says) || "";
		play.textContent = playing ? "Pause" : "Play";
		tokens.hidden = s.view === "film" || s.view === "ablate" || !maps.names.length;
		[stage.hidden, heads.hidden] = [s.view === "ablate", s.view !== "ablate"];
	}

	// A token that is no patch has no place on the image: its button wears its colour and its share.
	function chips(s) {
		const look = plan.look, high = look ? plan.high() : 0, { cividis } = maps;
		[...tokens.children].forEach((chip, i) => {
			const name = maps.names[i], at = look ? look.names.indexOf(name) : -1, colour = 3 * shade(look?.extra[at], 0, high);
			chip.setAttribute("aria-pressed", s.query === name);
			chip.firstChild.style.background = at >= 0 ? `rgb(${cividis.subarray(colour, colour + 3).join(" ")})` : "transparent";
			chip.lastChild.textContent = name + (at >= 0 ? ` ${percent(look.extra[at])}` : "");
		});
	}

	// drawing

	function draw(began = clock()) {
		if (!maps) return;
		const s = state();
		if (!s.token) lastPatch = s.query;
		controls(s);
		if (s.view === "ablate") drawHeads();
		else {
			const W = min(stage.clientWidth, 1000), ratio = window.devicePixelRatio || 1;
			if (!W) return;
			plan = PLANS[s.view](maps, s, W, tween, other);
			if (plan.waiting) return fetchRows(s);
			const size = [W, plan.height].map((side) => round(side * ratio));
			if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
			[canvas.style.width, canvas.style.height] = [`${W}px`, `${plan.height}px`];
			ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
			ctx.clearRect(0, 0, W, plan.height);
			plan.paint(new Brush(ctx, getComputedStyle(root).color));
			chips(s);
		}
		const words = s.view === "ablate" ? get("outcome").says : plan.say();
		if (says.textContent !== words) says.textContent = words;
		canvas.setAttribute("aria-label", `${VIEWS[s.view]}. ${maps.help}`);
		Object.assign(root.dataset, { view: s.view, redrawMs: (clock() - began).toFixed(2) });
	}

	function fetchRows(s) {
		const key = asking(s);
		if (waitsFor === key) return;
		waitsFor = key;
		model.send({ ask: "rows", query: s.query, direction: s.direction, image: s.image });
	}

	function received(message, buffers) {
		if (message.rows !== "answer") return;
		buffers.forEach((view, i) => {
			const { header, arrays } = unbundle(view), side = i ? other : maps;
			if (header.image !== side.image) return;
			side.answers.set(asking(header), arrays);
			if (side.answers.size > 64) side.answers.delete(side.answers.keys().next().value);
		});
		waitsFor = "";
		draw();
	}

	// silencing heads

	function buildHeads() {
		const silence = (l, heads) => {
			const now = get("silenced"), mine = (pair) => pair[0] === l && heads.includes(pair[1]);
			const rest = now.filter((pair) => !mine(pair));
			apply({ silenced: now.length - rest.length === heads.length ? rest : [...rest, ...heads.map((head) => [l, head])] });
		};
		const line = ({ heads: count }, l) => {
			const one = (words, label, heads, props) => button(words, () => silence(l, heads), { disabled: alone, "aria-label": `Silence ${label}`, ...props });
			const each = range(count).map((head) => one(head, `layer ${l}, head ${head}`, [head], { className: "toggle", "data-head": `${l},${head}` }));
			return make("div", { className: "row" }, one(`layer ${l}`, `all of layer ${l}`, range(count), { className: "name" }), ...each);
		};
		const note = alone
			? "Silencing heads needs a running kernel; this page shows the state in which it was saved."
			: "Click a head to silence it: it puts out zeros, and the model runs again.";
		const bar = () => make("div", { className: "bar" }, make("span"), make("div", {}, make("i"), make("b")), make("span"));
		const bars = [make("p", { textContent: "Logit (line: with all heads) and probability" }), ...get("outcome").classes.map(bar)];
		const none = button("Silence none", () => apply({ silenced: [] }), { disabled: alone });
		const sides = [make("div", {}, ...maps.layers.map(line), none), make("div", { className: "bars" }, ...bars)];
		heads.replaceChildren(make("p", { textContent: note }), make("div", { className: "sides" }, ...sides));
	}

	function drawHeads() {
		const { classes, answer } = get("outcome"), silenced = new Set(get("silenced").map(String));
		for (const one of heads.querySelectorAll(".toggle")) {
			one.setAttribute("aria-pressed", silenced.has(one.dataset.head));
			one.tabIndex = one.dataset.head === current ? 0 : -1;
		}
		const all = classes.flatMap(({ logit, was }) => [0, logit, was]), low = min(...all), wide = max(...all) - low || 1;
		const at = (value) => `${(100 * (value - low)) / wide}%`;
		heads.querySelectorAll(".bar").forEach((bar, i) => {
			const { name, before, after, logit, was } = classes[i], [label, track, value] = bar.children;
			[label.textContent, value.textContent] = [name, `${(logit / 10).toFixed(1)} · ${tenths(after)} (was ${tenths(before)})`];
			Object.assign(track.firstChild.style, { left: at(min(0, logit)), width: `${(100 * abs(logit)) / wide}%` });
			track.lastChild.style.left = at(was);
			bar.classList.toggle("answer", name === answer);
		});
	}

	heads.onkeydown = (event) => {
		const step = ARROWS[event.key], from = event.target.dataset.head;
		if (!step || !from) return;
		const next = from.split(",").map((at, i) => Number(at) + step[i]), to = heads.querySelector(`[data-head="${next}"]`);
		event.preventDefault();
		if (!to) return;
		current = String(next);
		drawHeads();
		to.focus();
	};

	// pointer and keys

	const pointer = ({ clientX, clientY }) => {
		const { left, top } = canvas.getBoundingClientRect();
		return [clientX - left, clientY - top];
	};
	canvas.onclick = (event) => {
		const began = clock(), hit = plan?.hit(...pointer(event));
		if (hit) apply(hit, began);
	};
	canvas.onpointermove = (event) => (read.textContent = plan?.read(...pointer(event)) || aside);
	canvas.onpointerleave = () => (read.textContent = aside);

	// The next cell of the grid that this layer asks from, as a patch of the finest grid.
	function moved(s, step) {
		const { patches } = maps, own = s.view === "film" ? patches : gridOf(maps, s.layer, s.back);
		const from = s.token ? lastPatch ?? patches.map((n) => n >> 1) : s.query, cell = from.map((at, i) => max(0, min(own[i] - 1, cellOf(at, patches[i], own[i]) + (s.token ? 0 : step[i]))));
		return { query: cell.map((at, i) => cellOf(at, own[i], patches[i])) };
	}

	function keyed(key, s) {
		const arrow = ARROWS[key] ?? { Home: [0, -1e9], End: [0, 1e9] }[key];
		if (arrow) return moved(s, arrow);
		const turn = { PageDown: 1, PageUp: -1, ",": -1, ".": 1 }[key], head = inputs.head;
		if (turn && key.length === 1) return { head: plain(head.options[max(0, min(head.length - 1, head.selectedIndex + turn))].value) };
		const name = s.view === "film" ? "step" : "layer", view = Object.keys(VIEWS)[key - 1], { names } = maps;
		if (turn) return { [name]: max(0, min(inputs[name].max, s[name] + turn)) };
		if (view && !views[view].hidden) return { view };
		if (/^c$/i.test(key) && names.length) return { query: names[(names.indexOf(s.query) + 1) % names.length] };
		if (/^d$/i.test(key)) return { direction: s.back ? "looks at" : "looked at by" };
		if (key === "Enter" && s.view === "grid") return { view: "overlay" };
	}

	canvas.onkeydown = (event) => {
		const began = clock(), { key } = event, space = key === " " && get("view") === "film";
		const changes = maps && !event.ctrlKey && !event.metaKey && !event.altKey && keyed(key, state());
		if (!changes && !space) return;
		event.preventDefault();
		event.stopPropagation();
		if (space) toggle();
		else apply(changes, began);
	};

	// playing the film

	function toggle() {
		if (playing) playing = clearInterval(playing);
		else {
			if (get("step") >= inputs.step.max) apply({ step: 0 });
			playing = setInterval(forward, 1100);
		}
		draw();
	}

	function forward() {
		const now = get("step");
		if (!root.isConnected || get("view") !== "film" || now >= inputs.step.max) return toggle();
		const start = clock(), fade = () => {
			tween = calm.matches ? 1 : min(1, (clock() - start) / 450);
			draw();
			if (tween < 1) requestAnimationFrame(fade);
		};
		tween = calm.matches ? 1 : 0;
		apply({ step: now + 1 });
		fade();
	}

	// staying true to the model and to the page

	const changed = () => busy || draw(), reloaded = () => (load(), draw());
	const heard = [["msg:custom", received], ["change:data", reloaded], ["change:other", reloaded]];
	for (const name of ["silenced", "outcome", "view", "query", ...Object.keys(inputs)]) heard.push([`change:${name}`, changed]);
	for (const pair of heard) model.on(...pair);
	const dress = () => {
		const light = document.body.dataset.jpThemeLight;
		root.style.colorScheme = light ? (light === "true" ? "light" : "dark") : "";
		draw();
	};
	const size = new ResizeObserver(() => draw()), theme = new MutationObserver(dress), dark = matchMedia("(prefers-color-scheme: dark)");
	el.append(root);
	load();
	dress();
	size.observe(stage);
	theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
	dark.addEventListener("change", dress);
	return () => {
		clearInterval(playing);
		size.disconnect();
		theme.disconnect();
		dark.removeEventListener("change", dress);
		for (const pair of heard) model.off(...pair);
	};
}

export default { render };
