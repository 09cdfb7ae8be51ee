
"use strict";
(() => {
  const { nodes, classes, layers } = JSON.parse(document.getElementById("data").textContent);
  const DIRECTORY = -1;
  const HEADER = 18, GAP = 2, CELLS_MAX = 2500;
  const map = document.getElementById("treemap");
  const crumbs = document.getElementById("crumbs");
  const detail = document.getElementById("detail");
  const legend = document.getElementById("legend");
  const children = nodes.names.map(() => []);
  for (let n = 1; n < nodes.names.length; n++) children[nodes.parents[n]].push(n);
  // Of a directory that is drawn closed: the class and the layer that most of its bytes have, as far as nodes tell.
  const most = (of) => {
    const sums = nodes.names.map(() => null);
    const mostly = of.slice();
    for (let n = nodes.names.length - 1; n >= 0; n--) {
      if (sums[n]) mostly[n] = [...sums[n]].reduce((a, b) => (b[1] > a[1] ? b : a))[0];
      if (n === 0) break;
      const above = (sums[nodes.parents[n]] ??= new Map());
      for (const [key, bytes] of sums[n] ?? [[of[n], nodes.plain[n] + nodes.stored[n]]]) {
        above.set(key, (above.get(key) ?? 0) + bytes);
      }
      sums[n] = null;
    }
    return mostly;
  };
  const mostlyClass = most(nodes.classes), mostlyLayer = most(nodes.layers);
  const state = { at: 0, area: "stored", colour: "class" };
  let cells = new Map();

  const units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  const bytes = (n) => {
    if (n < 1024) return n + " B";
    let unit = -1;
    do { n /= 1024; unit++; } while (n >= 1024 && unit + 1 < units.length);
    return (n >= 100 ? Math.floor(n) : (Math.floor(n * 10) / 10).toFixed(1)) + " " + units[unit];
  };
  const count = (n) => n.toLocaleString("en-US");
  const isDir = (n) => nodes.classes[n] === DIRECTORY;
  const size = (n) => (state.area === "plain" ? nodes.plain[n] : nodes.stored[n]);
  const path = (n) => {
    const parts = [];
    for (let at = n; at > 0; at = nodes.parents[at]) parts.unshift(nodes.names[at]);
    return "/" + parts.join("/");
  };
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const ratio = (n) => (nodes.plain[n] > 0 ? nodes.stored[n] / nodes.plain[n] : null);
  const ratioClass = (n) => {
    const r = ratio(n);
    return r === null ? "none" : "r" + (r < 0.2 ? 0 : r < 0.4 ? 1 : r < 0.6 ? 2 : r < 0.9 ? 3 : 4);
  };
  const colour = (n) => {
    if (state.colour === "ratio") return ratioClass(n);
    const [of, key] = state.colour === "layer" ? [mostlyLayer, "l"] : [mostlyClass, "k"];
    return of[n] < 0 ? "none" : key + (of[n] % 10);
  };
  const describe = (n) => {
    const r = ratio(n);
    const share = size(state.at) > 0 ? ", " + ((size(n) / size(state.at)) * 100).toFixed(1) + "% of what is shown" : "";
    return path(n) + " – " + bytes(nodes.plain[n]) + " before, " + bytes(nodes.stored[n]) + " stored"
      + (r === null ? "" : " (" + Math.floor(r * 100) + "%)")
      + (isDir(n) ? ", " + count(nodes.files[n]) + (nodes.files[n] === 1 ? " file" : " files") : "") + share;
  };

  // Rows of rectangles that are as square as can be (Bruls, Huizing and van Wijk).
  const squarify = (items, x, y, w, h, place) => {
    const total = items.reduce((sum, n) => sum + size(n), 0);
    if (total <= 0 || w <= 0 || h <= 0) return;
    const scale = (w * h) / total;
    let start = 0;
    while (start < items.length && w > 0.5 && h > 0.5) {
      const side = Math.min(w, h);
      let sum = 0, end = start, best = Infinity;
      while (end < items.length) {
        const area = size(items[end]) * scale;
        const grown = sum + area;
        const largest = size(items[start]) * scale;
        const worst = Math.max((side * side * largest) / (grown * grown), (grown * grown) / (side * side * area));
        if (worst > best) break;
        best = worst;
        sum = grown;
        end++;
      }
      if (end === start) end++;
      const thick = sum / side;
      let along = 0;
      for (let i = start; i < end; i++) {
        const length = (size(items[i]) * scale) / thick;
        if (w >= h) place(items[i], x, y + along, thick, length);
        else place(items[i], x + along, y, length, thick);
        along += length;
      }
      if (w >= h) { x += thick; w -= thick; } else { y += thick; h -= thick; }
      start = end;
    }
  };

  const addCell = (n, x, y, w, h, level) => {
    const into = isDir(n) && children[n].length > 0;
    const open = into && level < 8 && w > 44 && h > 40;
    const cell = make("div", "cell " + (open ? "dir open" : (isDir(n) ? "dir " : "") + colour(n)));
    cell.style.left = x + "px";
    cell.style.top = y + "px";
    cell.style.width = Math.max(w - GAP, 1) + "px";
    cell.style.height = Math.max(h - GAP, 1) + "px";
    cell.dataset.node = n;
    cell.tabIndex = -1;
    cell.setAttribute("role", "treeitem");
    cell.setAttribute("aria-level", level);
    cell.setAttribute("aria-label", describe(n));
    if (into) cell.setAttribute("aria-expanded", open ? "true" : "false");
    if (w > 34 && h > 16) {
      cell.classList.add("named");
      cell.append(nodes.names[n] + (isDir(n) ? "/" : ""));
      if (w > 110) cell.append(" ", make("small", "", bytes(size(n))));
    }
    map.append(cell);
    cells.set(n, cell);
    return open;
  };

  // The largest directories are filled first, so that what there is no room for is small everywhere.
  const fill = (root, width, height) => {
    let waiting = [{ n: root, x: GAP, y: GAP, w: width - GAP, h: height - GAP, level: 1 }];
    while (waiting.length > 0) {
      const next = [];
      for (const { n, x, y, w, h, level } of waiting) {
        const items = children[n].filter((c) => size(c) > 0).sort((a, b) => size(b) - size(a));
        squarify(items, x, y, w, h, (c, cx, cy, cw, ch) => {
          if (cells.size >= CELLS_MAX || cw < 3 || ch < 3) return;
          if (!addCell(c, cx, cy, cw, ch, level)) return;
          next.push({ n: c, x: cx + 4, y: cy + HEADER, w: cw - GAP - 6, h: ch - HEADER - GAP - 3, level: level + 1 });
        });
      }
      waiting = next.sort((a, b) => b.w * b.h - a.w * a.h);
    }
  };

  const drawCrumbs = () => {
    crumbs.replaceChildren();
    const line = [];
    for (let n = state.at; n > 0; n = nodes.parents[n]) line.unshift(n);
    line.unshift(0);
    line.forEach((n, i) => {
      if (i > 1) crumbs.append(make("i", "", "/"));
      const button = make("button", "", nodes.names[n]);
      button.type = "button";
      if (n === state.at) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => zoom(n, true));
      crumbs.append(button);
    });
    crumbs.append(make("em", "", bytes(nodes.plain[state.at]) + " before, " + bytes(nodes.stored[state.at])
      + " stored, " + count(nodes.files[state.at]) + " files"));
  };

  const drawLegend = () => {
    legend.replaceChildren();
    const entry = (key, text) => {
      const item = make("li");
      item.append(make("span", "key " + key), text);
      legend.append(item);
    };
    if (state.colour === "class") classes.forEach((name, n) => entry("k" + n, name));
    else if (state.colour === "ratio") {
      ["below 20%", "to 40%", "to 60%", "to 90%", "hardly compressed"].forEach((text, n) => entry("r" + n, text));
    } else {
      for (let n = 0; n < Math.min(layers, 10); n++) entry("l" + n, "layer " + n + (layers > 10 ? ", " + (n + 10) + ", …" : ""));
    }
  };

  const draw = () => {
    cells = new Map();
    map.replaceChildren();
    fill(state.at, map.clientWidth, map.clientHeight);
    if (cells.size === 0) {
      map.append(make("p", "", nodes.files[state.at] > 0 ? "The files in here have no bytes to show." : "There are no files in here."));
    }
    const first = cells.values().next().value;
    if (first) first.tabIndex = 0;
    drawCrumbs();
    drawLegend();
    detail.textContent = describe(state.at);
  };

  const focus = (n) => {
    const cell = cells.get(n);
    if (!cell) return;
    for (const other of map.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    cell.tabIndex = 0;
    cell.focus();
  };

  const zoom = (n, remember) => {
    while (n > 0 && !(isDir(n) && children[n].length > 0)) n = nodes.parents[n];
    const before = state.at;
    state.at = n;
    if (remember && before !== n) history.pushState(null, "", "#" + n);
    const inside = map.contains(document.activeElement) || crumbs.contains(document.activeElement);
    draw();
    // Going out, the focus stays on where one came from.
    let child = before;
    while (child > 0 && nodes.parents[child] !== n) child = nodes.parents[child];
    if (inside) focus(child > 0 && cells.has(child) ? child : cells.keys().next().value);
  };

  const fromHash = () => {
    const n = Number.parseInt(location.hash.slice(1), 10);
    zoom(n >= 0 && n < nodes.names.length ? n : 0, false);
  };

  const nodeOf = (event) => {
    const cell = event.target.closest(".cell");
    return cell ? Number(cell.dataset.node) : null;
  };
  map.addEventListener("click", (event) => {
    const n = nodeOf(event);
    if (n !== null) zoom(n, true);
  });
  for (const kind of ["mouseover", "focusin"]) {
    map.addEventListener(kind, (event) => {
      const n = nodeOf(event);
      if (n !== null) detail.textContent = describe(n);
    });
  }
  map.addEventListener("mouseleave", () => { detail.textContent = describe(state.at); });
  map.addEventListener("keydown", (event) => {
    const n = nodeOf(event);
    if (n === null || event.altKey || event.ctrlKey || event.metaKey) return;
    const shown = (parent) => children[parent].filter((c) => cells.has(c)).sort((a, b) => size(b) - size(a));
    const siblings = shown(nodes.parents[n]);
    const step = (by) => siblings[siblings.indexOf(n) + by];
    let to;
    switch (event.key) {
      case "ArrowRight": to = step(1); break;
      case "ArrowLeft": to = step(-1); break;
      case "ArrowDown": to = shown(n)[0]; break;
      case "ArrowUp": to = nodes.parents[n]; break;
      case "Home": to = siblings[0]; break;
      case "End": to = siblings[siblings.length - 1]; break;
      case "Enter": case " ": zoom(n, true); break;
      case "Escape": case "Backspace": zoom(nodes.parents[state.at], true); break;
      default: return;
    }
    event.preventDefault();
    if (to !== undefined) focus(to);
  });
  for (const name of ["area", "colour"]) {
    for (const input of document.querySelectorAll('input[name="' + name + '"]')) {
      input.addEventListener("change", () => { state[name] = input.value; draw(); });
      if (input.checked) state[name] = input.value;
    }
  }
  window.addEventListener("hashchange", fromHash);
  window.addEventListener("popstate", fromHash);
  let waiting = 0;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(draw, 100);
  });
  fromHash();
})();
