// Draws the charts of the report, in the page's colours: by day, by night and on paper.
(() => {
  "use strict";
  const { template, figures } = JSON.parse(document.getElementById("charts").textContent);
  const night = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;

  const palette = () => {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue("--" + name).trim();
    const names = ["ink", "muted", "grid", "paper", "blue", "vermillion", "green", "pink", "orange", "sky"];
    return Object.fromEntries(names.map((name) => ["theme:" + name, colour(name)]));
  };

  // A colour is a whole string, or in the style of a label's glyph; texts are never searched for one.
  const themed = (value, colours) => {
    if (typeof value === "string") {
      if (value in colours) return colours[value];
      const styled = /^<span style="color:(theme:[a-z]+)">/.exec(value);
      return styled ? value.replace(styled[1], colours[styled[1]]) : value;
    }
    if (Array.isArray(value)) return value.map((item) => themed(item, colours));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, themed(item, colours)]));
    }
    return value;
  };

  const draw = () => {
    const colours = palette();
    const look = themed(template, colours);
    for (const [id, figure] of Object.entries(figures)) {
      const element = document.getElementById(id);
      element.querySelector(".waiting")?.remove();
      const { data, layout } = themed(figure, colours);
      const size = { width: element.clientWidth, height: element.clientHeight };
      Plotly.react(element, data, { ...layout, ...size, template: look }, { displayModeBar: false });
    }
  };

  // On the page a chart's title, its unit and its legend stand around it; in a file they are in the picture.
  const described = (id, data, layout) => {
    const text = (selector) => {
      const content = document.getElementById(id).parentElement.querySelector(selector)?.textContent ?? "";
      return content.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
    };
    const isNamed = (layout.annotations?.length ?? 0) >= data.length; // at the ends of its lines
    const title = text("h4");
    return {
      ...layout,
      showlegend: data.length > 1 && !isNamed,
      title: { text: title, x: 0.01, xanchor: "left" },
      margin: { ...layout.margin, t: title ? 40 : layout.margin?.t ?? 10 },
      yaxis: { ...layout.yaxis, title: { text: text(".unit"), standoff: 8 } },
    };
  };

  // A file is for papers: always in the colours of the day, on white.
  const paperFigure = (id) => {
    const shown = root.classList.contains("paper");
    root.classList.add("paper");
    const colours = palette();
    root.classList.toggle("paper", shown);
    const { data, layout } = themed(figures[id], colours);
    const look = themed(template, colours);
    const whole = described(id, data, layout);
    return { data, layout: { ...whole, template: look, paper_bgcolor: "#fff", plot_bgcolor: "#fff" } };
  };

  const save = (id, format) => {
    const element = document.getElementById(id);
    const size = { width: element.clientWidth, height: element.clientHeight };
    const scale = format === "png" ? 3 : 1;
    const filename = document.title.split(":")[0] + "-" + id;
    Plotly.downloadImage(paperFigure(id), { format, ...size, scale, filename });
  };

  for (const id of Object.keys(figures)) {
    const element = document.getElementById(id);
    const tools = document.createElement("div");
    tools.className = "tools";
    for (const format of ["svg", "png"]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = format.toUpperCase();
      button.title = "Save this chart as " + format.toUpperCase();
      button.setAttribute("aria-label", button.title + ": " + element.getAttribute("aria-label"));
      button.addEventListener("click", () => save(id, format));
      tools.append(button);
    }
    element.after(tools);
  }

  let timer = 0;
  let width = root.clientWidth;
  addEventListener("resize", () => {
    if (root.clientWidth === width || root.classList.contains("paper")) return;
    width = root.clientWidth;
    clearTimeout(timer);
    timer = setTimeout(draw, 150);
  });
  const onPaper = (on) => { root.classList.toggle("paper", on); draw(); };
  addEventListener("beforeprint", () => onPaper(true));
  addEventListener("afterprint", () => onPaper(false));
  night.addEventListener("change", draw);
  draw();
})();
