"""Draws bars as SVG, with no library."""

from xml.sax.saxutils import escape

ROW, LEFT, WIDTH = 18, 250, 520


def bars(path, title, groups, unit="x", log=False):
    """Horizontal bars: `groups` are (headline, [(label, value, highlighted)])."""
    import math
    values = [value for _, rows in groups for _, value, _ in rows]
    top = max(values, default=1)
    scale = (lambda v: math.log10(max(v, 0.1) * 10) / math.log10(top * 10)) if log else (
        lambda v: v / top)
    parts, y = [], 40
    for headline, rows in groups:
        parts.append(f'<text x="10" y="{y + 13}" font-weight="bold">{escape(headline)}</text>')
        y += ROW + 4
        for label, value, own in rows:
            length = max(1, scale(value) * WIDTH)
            colour = "#d9480f" if own else "#4c6ef5"
            parts.append(f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(label)}'
                         f'</text><rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{ROW - 4}" '
                         f'fill="{colour}"/><text x="{LEFT + length + 5:.1f}" y="{y + 12}">'
                         f'{value:.3g}{unit}</text>')
            y += ROW
        y += 8
    size = f'width="{LEFT + WIDTH + 80}" height="{y + 10}"'
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" '
                   f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
                   f'<text x="10" y="22" font-size="15">{escape(title)}</text>'
                   + "\n".join(parts) + "</svg>\n")
