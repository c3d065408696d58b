// What a reader of the page would stumble over, as JSON.
(() => {
  const wide = document.documentElement.clientWidth;
  const all = [...document.body.querySelectorAll("*")].filter(e => e.checkVisibility() && e.getClientRects().length);
  const box = e => e.getBoundingClientRect(), said = e => e.outerHTML.slice(0, 120);
  const style = e => getComputedStyle(e);
  const past = all.filter(e => !e.closest("svg") && (box(e).right > wide + 1 || box(e).left < -1));
  const clipped = all.filter(e => e.matches("td, th, dd, p, h1, h2, h3, a, li, label")
    && e.scrollWidth > e.clientWidth + 1 && style(e).display !== "inline");

  // Text that lies on other text: the lines of all text nodes, against each other.
  const lines = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const parent = node.parentElement, text = node.textContent.trim();
    if (!text || !parent.checkVisibility() || parent.closest("script, title, select, pre")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const r of range.getClientRects()) if (r.width > 1) lines.push([r, text.slice(0, 60)]);
  }
  lines.sort((a, b) => a[0].top - b[0].top);
  const over = [];
  lines.forEach(([a, one], place) => {
    for (const [b, two] of lines.slice(place + 1, place + 40)) {
      if (b.top > a.bottom) break;
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 2 && down > Math.min(a.height, b.height) / 2) over.push([one, two]);
    }
  });

  // Text that is hard to read on what is behind it (WCAG 2.1, 1.4.3).
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\d.]+/g).slice(0, 3).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) if (!/, 0\)$/.test(style(e).backgroundColor)) return style(e).backgroundColor;
    return "rgb(255, 255, 255)";
  };
  const hasText = e => [...e.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  const pale = all.filter(hasText).filter(e => !e.matches("svg *, select, option, button, input")).filter(e => {
    const [a, b] = [style(e).color, behind(e)].map(luminance);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  });

  const small = all.filter(e => e.matches("p, td, li, dd, dt, a") && parseFloat(style(e).fontSize) < 11);
  return JSON.stringify({
    wide, scroll: document.documentElement.scrollWidth, over, small: small.map(said),
    past: past.map(said), clipped: clipped.map(said), pale: pale.map(said), paper: style(document.body).backgroundColor,
  });
})()
