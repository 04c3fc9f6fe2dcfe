"use strict";
// Figures, and plotly beside images, may be packed (zlib, base64) to keep the page small.
const unpack = async (element) => {
  if (!("packed" in element.dataset)) return element.textContent;
  const text = atob(element.textContent);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
};
const library = async () => {
  const element = document.getElementById("plotly");
  if (element) document.head.append(Object.assign(document.createElement("script"), { textContent: await unpack(element) }));
};

Promise.all([unpack(document.getElementById("figures")), library()]).then(([figures]) => {
  const store = JSON.parse(figures);
  const root = document.documentElement;
  const coarse = matchMedia("(pointer: coarse)").matches;
  const KEEP = new Set(["x", "y", "z", "text", "customdata", "ticktext", "tickvals"]);
  const plots = new Map(); // element -> {figure, off: hidden groups}
  let printing = false;

  // ---- colours: figures carry those of a light page; a dark page swaps each for its partner
  const dark = () => root.dataset.theme === "dark" && !printing;
  const recolor = (value, key) => {
    if (typeof value === "string") return dark() && store.dark[value] ? store.dark[value] : value;
    if (Array.isArray(value)) return KEEP.has(key) ? value : value.map((item) => recolor(item, key));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, recolor(item, name)]));
    return value;
  };
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const themed = (layout, scale) => {
    const [ink, muted, line, card] = ["--ink", "--muted", "--line", "--card"].map(css);
    const made = recolor(layout, "layout");
    for (const name of Object.keys(made).filter((key) => /^[xy]axis/.test(key))) {
      const axis = made[name];
      Object.assign(axis, {
        gridcolor: line, linecolor: muted, zerolinecolor: muted, tickcolor: line, ticks: "outside", ticklen: 4,
        showline: name.startsWith("x"), zerolinewidth: 1, fixedrange: coarse,
        tickfont: { size: 12, color: muted }, title: { ...axis.title, font: { size: 12.5, color: ink } },
      });
      if (name.startsWith("x")) axis.showgrid = false;
      if (scale === "linear" && axis.type === "log") {
        axis.type = "linear"; axis.rangemode = "tozero";
        ["range", "tickvals", "ticktext"].forEach((key) => delete axis[key]);
      }
    }
    return Object.assign(made, {
      autosize: true, paper_bgcolor: card, plot_bgcolor: card, dragmode: coarse ? false : "zoom",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: ink },
      hoverlabel: { bgcolor: card, bordercolor: muted, font: { color: ink, size: 13, family: getComputedStyle(document.body).fontFamily }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink },
      ...(printing ? { width: 330 } : {}),
    });
  };

  // ---- drawing
  const draw = (element) => {
    const { figure, off, scale } = plots.get(element);
    const data = figure.data.map((trace) => ({
      ...recolor(trace, "trace"),
      visible: !(trace.meta.groups || []).some((group) => off.has(group)),
    }));
    Plotly.react(element, data, themed(figure.layout, scale), {
      responsive: true, displaylogo: false, scrollZoom: false, doubleClick: "reset",
      displayModeBar: coarse ? false : "hover",
      modeBarButtons: [["toImage", "resetScale2d"]],
      toImageButtonOptions: { filename: `pinchpoint-${element.id}`, scale: 2 },
    });
    element.querySelectorAll("svg.main-svg").forEach((drawn) => drawn.setAttribute("aria-hidden", "true")); // the label says it
  };
  const drawAll = () => [...plots.keys()].forEach(draw);
  const drawInTurn = () => {
    const waiting = [...plots.keys()];
    const next = () => {
      const element = waiting.shift();
      if (!element) { root.dataset.drawn = "true"; return; }
      draw(element);
      setTimeout(next, 0);
    };
    next();
  };

  // ---- legends: a button hides and shows the traces of its group
  document.querySelectorAll(".key").forEach((button) =>
    button.addEventListener("click", () => {
      const element = button.closest(".panel").querySelector(".plot");
      const { off } = plots.get(element);
      const pressed = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!pressed));
      off[pressed ? "add" : "delete"](button.dataset.group);
      draw(element);
    }),
  );

  // ---- selectors: family, layer or attack, and scale decide what a figure shows
  const option = (text) => Object.assign(document.createElement("option"), { value: text, textContent: text });
  document.querySelectorAll(".exhibit").forEach((exhibit) => {
    const choices = store.choices.filter((choice) => choice.exhibit === exhibit.dataset.exhibit);
    const elements = [...exhibit.querySelectorAll(".plot")];
    if (!choices.length) {
      elements.forEach((element) => plots.set(element, { figure: store.panels[element.id], off: new Set() }));
      return;
    }
    const [family, second, scale] = ["family", "option", "scale"].map((name) => exhibit.querySelector(`[data-choose=${name}]`));
    const show = () => {
      const choice = choices.find((item) => item.family === family.value && item.option === second.value);
      elements.forEach((element, index) => {
        const [panel, place] = [choice.panels[index], element.closest(".panel")];
        place.hidden = !panel;
        if (!panel) { plots.delete(element); return; }
        const off = new Set();
        place.querySelectorAll(".keys").forEach((keys) => {
          keys.hidden = keys.dataset.legend !== String(panel.legend);
          if (!keys.hidden)
            keys.querySelectorAll("[aria-pressed=false]").forEach((button) => off.add(button.dataset.group));
        });
        place.querySelector(".panel-title .words").textContent = panel.title;
        element.setAttribute("aria-label", panel.label);
        plots.set(element, { figure: panel.figure, off, scale: scale ? scale.value : undefined });
        if (root.dataset.drawn) draw(element);
      });
    };
    const fill = () => {
      const before = second.value;
      const names = choices.filter((item) => item.family === family.value).map((item) => item.option);
      second.replaceChildren(...names.map(option));
      if (names.includes(before)) second.value = before;
      show();
    };
    family.addEventListener("change", fill);
    second.addEventListener("change", show);
    if (scale) scale.addEventListener("change", show);
    fill();
  });

  // ---- theme
  const button = document.getElementById("theme");
  const name = () => { button.textContent = root.dataset.theme === "dark" ? "Light page" : "Dark page"; };
  const setTheme = (theme, keep) => {
    root.dataset.theme = theme;
    if (keep) try { localStorage.setItem("pinchpoint-theme", theme); } catch (error) { /* private windows keep nothing */ }
    name();
    drawAll();
  };
  button.hidden = false;
  name();
  button.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark", true));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    let kept = null;
    try { kept = localStorage.getItem("pinchpoint-theme"); } catch (error) { kept = null; }
    if (!kept) setTheme(event.matches ? "dark" : "light", false);
  });

  // ---- print: light, two figures side by side, everything unfolded
  let before = null;
  addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, folded: [...document.querySelectorAll("details:not([open])")] };
    printing = true;
    root.dataset.theme = "light";
    before.folded.forEach((item) => { item.open = true; });
    drawAll();
  });
  addEventListener("afterprint", () => {
    printing = false;
    root.dataset.theme = before.theme;
    before.folded.forEach((item) => { item.open = false; });
    drawAll();
  });

  // ---- tables: sort by a head, rows within their group and groups by their first row; what has no value stays last
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const rows = (group) => [...group.rows].filter((row) => row.cells.length === heads.length);
    const sort = (column, down) => {
      const of = (row) => { const text = row.cells[column].dataset.value; return text === undefined ? null : Number(text); };
      const compare = (a, b) => {
        const [x, y] = [of(a), of(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return down ? y - x : x - y;
      };
      const groups = [...table.tBodies];
      groups.forEach((group) => group.append(...rows(group).sort(compare)));
      table.append(...groups.sort((a, b) => compare(rows(a)[0], rows(b)[0])));
    };
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (button) button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.filter((other) => other.hasAttribute("aria-sort")).forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(column, down);
        document.getElementById("sorted").textContent = `Sorted by ${button.firstChild.textContent}, ${down ? "descending" : "ascending"}.`;
      });
    });
  });

  // ---- definitions: a title becomes a tip, on hover and on focus; Escape puts it away
  const tip = Object.assign(document.createElement("div"), { id: "tip", className: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  let owner = null, leaving = 0;
  const fold = () => {
    if (owner) owner.removeAttribute("aria-describedby");
    owner = null;
    tip.hidden = true;
  };
  const beside = () => {
    if (!owner) return;
    const [place, size] = [owner.getBoundingClientRect(), tip.getBoundingClientRect()];
    const below = place.bottom + 6 + size.height < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(place.left, root.clientWidth - size.width - 8))}px`;
    tip.style.top = `${below ? place.bottom + 6 : place.top - size.height - 6}px`;
  };
  const unfold = (element) => {
    clearTimeout(leaving);
    if (owner === element) return;
    fold();
    owner = element;
    const entry = document.getElementById(`term-${element.dataset.term}`);
    const [name, told] = [document.createElement("strong"), document.createElement("span")];
    if (entry) {
      name.textContent = entry.querySelector("dt").textContent;
      told.append(...[...entry.querySelector("dd").cloneNode(true).childNodes].filter((node) => node.nodeName !== "A"));
    } else told.textContent = element.dataset.tip;
    tip.replaceChildren(name, told);
    tip.hidden = false;
    element.setAttribute("aria-describedby", "tip");
    beside();
  };
  const leave = () => { leaving = setTimeout(fold, 150); };
  document.querySelectorAll("main [title]").forEach((element) => {
    if (element.hash) element.dataset.term = element.hash.replace("#term-", "");
    element.dataset.tip = element.title;
    element.removeAttribute("title");
    element.addEventListener("pointerenter", () => unfold(element));
    element.addEventListener("pointerleave", leave);
    element.addEventListener("focus", () => unfold(element));
    element.addEventListener("blur", fold);
  });
  tip.addEventListener("pointerenter", () => clearTimeout(leaving));
  tip.addEventListener("pointerleave", leave);
  addEventListener("keydown", (event) => { if (event.key === "Escape") fold(); });
  addEventListener("scroll", beside, { passive: true, capture: true });

  // ---- commands are copied by a button
  document.querySelectorAll(".copy").forEach((button) => {
    const line = button.parentElement.querySelector("code");
    const say = (text) => { button.firstChild.textContent = text; setTimeout(() => { button.firstChild.textContent = "Copy"; }, 1600); };
    const mark = () => { getSelection().selectAllChildren(line); say("Marked"); };
    button.hidden = false;
    button.addEventListener("click", () =>
      navigator.clipboard ? navigator.clipboard.writeText(line.textContent).then(() => say("Copied"), mark) : mark());
  });

  // ---- a link into something folded unfolds it
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let place = target; place; place = place.parentElement) if (place.nodeName === "DETAILS") place.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();

  // ---- which section is in view
  const links = new Map([...document.querySelectorAll(".sections a")].map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver((entries) =>
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id).setAttribute("aria-current", "true");
    }), { rootMargin: "-20% 0px -75% 0px" });
  links.forEach((_, id) => watch.observe(document.getElementById(id)));

  drawInTurn();
});
