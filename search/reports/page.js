"use strict";
(() => {
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const remembered = {
    get() { try { return localStorage.getItem("ranksweep-theme"); } catch { return null; } },
    set(theme) { try { localStorage.setItem("ranksweep-theme", theme); } catch { /* not kept */ } },
  };
  const isDark = () =>
    root.dataset.theme === "dark" || (root.dataset.theme === "auto" && prefersDark.matches);

  /* -- figures ------------------------------------------------------------------------------- */

  const drawn = new Map();
  let plotly = null;

  function loaded() {
    plotly ??= (async () => {
      const packed = document.getElementById("plotly").textContent.trim();
      const bytes = Uint8Array.from(atob(packed), (mark) => mark.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      const script = document.createElement("script");
      script.textContent = await new Response(stream).text();
      document.head.append(script);
      return globalThis.Plotly;
    })();
    return plotly;
  }

  const PAIR = /^(#[0-9a-fA-F]{3,8})\|(#[0-9a-fA-F]{3,8})$/;

  /** The figure with each "light|dark" colour as the one that fits the ground. */
  function coloured(each, dark) {
    if (typeof each === "string") {
      const pair = PAIR.exec(each);
      return pair ? pair[dark ? 2 : 1] : each;
    }
    if (Array.isArray(each)) return each.map((inner) => coloured(inner, dark));
    if (each && typeof each === "object") {
      return Object.fromEntries(
        Object.entries(each).map(([key, inner]) => [key, coloured(inner, dark)]));
    }
    return each;
  }

  /** A title of an axis on two lines where it would not fit on one. */
  function wrapped(text, narrow) {
    if (!narrow || text.length < 22) return text;
    const spaces = [...text.matchAll(/ /g)].map((match) => match.index);
    if (!spaces.length) return text;
    const middle = spaces.reduce((best, at) =>
      (Math.abs(at - text.length / 2) < Math.abs(best - text.length / 2) ? at : best));
    return `${text.slice(0, middle)}<br>${text.slice(middle + 1)}`;
  }

  function themed(given, width, dark) {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    const { data, layout } = coloured(given, dark);
    const narrow = width < 560;
    const axis = {
      gridcolor: colour("--line"), linecolor: colour("--soft"), zerolinecolor: colour("--line"),
      tickcolor: colour("--line"), automargin: true,
    };
    const axes = Object.fromEntries(
      ["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))]
        .map((key) => {
          const own = layout[key] ?? {};
          const title = own.title
            ? { standoff: 12, ...own.title, text: wrapped(own.title.text ?? "", narrow) }
            : undefined;
          return [key, { ...axis, ...own, ...(title && { title }) }];
        }));
    const legends = data.filter((trace) => trace.showlegend !== false && trace.name).length;
    const rows = Math.ceil(legends / (narrow ? 2 : 6));
    const below = {
      orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", yref: "paper",
      bgcolor: "rgba(0,0,0,0)", itemsizing: "constant", itemwidth: 30,
      font: { size: narrow ? 11 : 13 },
    };
    return {
      data,
      layout: {
        ...layout,
        ...axes,
        autosize: true,
        height: (layout.height ?? 440) + (narrow ? 22 * rows : 0),
        margin: { l: 56, r: 20, t: legends ? 16 + 24 * rows : 20, b: 56, ...layout.margin },
        legend: { ...below, ...layout.legend },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: style.getPropertyValue("--sans"), size: 13, color: colour("--ink"), ...layout.font },
        hoverlabel: { font: { family: style.getPropertyValue("--sans") } },
        dragmode: narrow ? false : (layout.dragmode ?? "zoom"),
      },
    };
  }

  const CONFIG = {
    // Its bar of buttons would lie over the data; a drag zooms, a double click shows all.
    responsive: true, displaylogo: false, plotlyServerURL: "", showTips: false, displayModeBar: false,
  };

  async function draw(plot) {
    const key = plot.dataset.figure;
    if (drawn.has(key)) return;
    const given = JSON.parse(document.getElementById(`${key}-figure`).textContent);
    const live = plot.querySelector(".live");
    drawn.set(key, { plot, live, given });
    try {
      const Plotly = await loaded();
      live.hidden = false;
      const least = given.layout?.meta?.least_width;
      if (least) live.style.minWidth = `${least}px`;
      const figure = themed(given, plot.clientWidth, isDark());
      await Plotly.newPlot(live, figure.data, figure.layout, CONFIG);
      if (/WebGL/.test(live.querySelector(".no-webgl, .gl-error")?.textContent ?? "")) {
        throw new Error("this browser has no WebGL");
      }
      live.setAttribute("aria-hidden", "true");
      if (least > plot.clientWidth) {
        plot.tabIndex = 0;
      }
      plot.classList.add("drawn");
    } catch (error) {
      live.hidden = true; // its picture stays
      console.warn(`${key} is shown as a picture: ${error.message}`);
    }
  }

  async function recolour() {
    if (!plotly) return;
    const Plotly = await plotly;
    for (const { plot, live, given } of drawn.values()) {
      if (!plot.classList.contains("drawn")) continue;
      const figure = themed(given, plot.clientWidth, isDark());
      await Plotly.react(live, figure.data, figure.layout, CONFIG);
    }
  }

  const plots = [...document.querySelectorAll("[data-figure]")];
  if (plots.length && "DecompressionStream" in globalThis && "IntersectionObserver" in globalThis) {
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        observer.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: "600px" });
    plots.forEach((plot) => observer.observe(plot));
  }

  /* -- theme --------------------------------------------------------------------------------- */

  const button = document.getElementById("theme");
  function show(theme) {
    root.dataset.theme = theme;
    button.textContent = `theme: ${theme}`;
    recolour();
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    const themes = ["auto", "light", "dark"];
    const next = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
    remembered.set(next);
    show(next);
  });
  prefersDark.addEventListener("change", recolour);
  show(["light", "dark"].includes(remembered.get()) ? remembered.get() : "auto");

  /* -- tables, files, commands --------------------------------------------------------------- */

  const NUMBER = /^[+−-]?[\d.,]+(e[+-]?\d+)?$|^–$/;
  for (const table of document.querySelectorAll(".figure table")) {
    const bodies = [...table.tBodies[0].rows];
    [...table.tHead.rows[0].cells].forEach((head, at) => {
      if (bodies.every((row) => NUMBER.test(row.cells[at].textContent))) {
        [head, ...bodies.map((row) => row.cells[at])].forEach((cell) => cell.classList.add("right"));
      }
    });
  }

  // A page that was sent without its files gives what it has itself.
  for (const figure of document.querySelectorAll(".figure")) {
    const image = figure.querySelector(".plot img");
    const whole = document.getElementById(`${figure.id}-csv`);
    const [png, csv] = figure.querySelectorAll(".files a");
    if (png && image) png.addEventListener("click", () => { png.href = image.src; });
    if (csv && whole) {
      csv.addEventListener("click", () => {
        const text = JSON.parse(whole.textContent);
        csv.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      });
    }
  }

  for (const copy of document.querySelectorAll(".copy")) {
    if (!navigator.clipboard) break;
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(copy.parentElement.querySelector("code").textContent);
      copy.textContent = "copied";
      setTimeout(() => { copy.textContent = "copy"; }, 1500);
    });
  }
})();
