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
