//! How the page looks: on a phone, on a wide screen, in the dark, and on paper.

pub(super) const STYLE: &str = "
:root{--bg:#f6f7f9;--card:#fff;--ink:#1b2430;--dim:#5d6b7c;--line:#dde2e8;--ok:#23854a;--okb:#dff2e5;
--wa:#9a6200;--wab:#fdf0d2;--cr:#b3261e;--crb:#fbe0de;--n:#e3e7ec;--acc:#2f6fb0;--accb:#cfe1f3}
@media(prefers-color-scheme:dark){:root{--bg:#12161b;--card:#1b2128;--ink:#e4e9ef;--dim:#98a6b5;--line:#313a45;
--ok:#5fc584;--okb:#173524;--wa:#e8b04a;--wab:#3b2d0e;--cr:#ff8a80;--crb:#4a1a18;--n:#2b333d;--acc:#76b0ea;--accb:#22384e}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem;max-width:100rem;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:0 0 .6rem}h3{font-size:1rem;margin:0 0 .3rem}
p{margin:.3rem 0}.dim,i,footer{color:var(--dim)}
section,footer{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem;margin:1rem 0}
footer{font-size:.85rem}
.state{display:inline-block;padding:.35rem .8rem;border-radius:8px;margin:.6rem 0 .2rem;font-size:1.1rem}
.state.ok{background:var(--okb);color:var(--ok)}.state.wa{background:var(--wab);color:var(--wa)}
.state.cr{background:var(--crb);color:var(--cr)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.8rem}
.tiles div{display:flex;flex-direction:column}.tiles b{font-size:1.45rem;line-height:1.3}.tiles span{color:var(--dim);font-size:.85rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.35rem .6rem .35rem 0;vertical-align:top;overflow-wrap:anywhere}
thead th{color:var(--dim);font-weight:600;font-size:.8rem;border-bottom:1px solid var(--line);overflow-wrap:normal}
tbody tr{border-bottom:1px solid var(--line)}tbody tr:last-child{border:0}
.mark{padding:.05rem .4rem;border-radius:5px;font-size:.85em;white-space:nowrap}
td b{font-weight:500}td b.mark{font-weight:700}
.ok .mark{background:var(--okb);color:var(--ok)}.wa .mark{background:var(--wab);color:var(--wa)}
.cr .mark,.site .mark{background:var(--crb);color:var(--cr)}
.key{color:var(--dim);font-size:.85rem}
.key span{white-space:nowrap;margin-right:.6rem}
.key i{display:inline-block;width:.75rem;height:.75rem;border-radius:2px;vertical-align:-.08rem}
.d{fill:var(--ok);background:var(--ok)}.w{fill:var(--wa);background:var(--wa)}.f{fill:var(--cr);background:var(--cr)}
.n{fill:var(--n);background:var(--n)}.full{background:var(--acc)}.inc{opacity:.55;background:var(--acc)}
.un{background:var(--dim)}.key i.un{height:.25rem;vertical-align:.15rem}.bad{background:var(--cr)}
.c path{stroke:var(--acc);stroke-width:5;stroke-dasharray:3 1}.c .full{stroke-width:11}.c .un{stroke:var(--dim);stroke-width:2}.c .bad{stroke:var(--cr)}
svg{display:block;max-width:none}svg.s{border-radius:3px}svg text{fill:var(--dim);font:11px system-ui,sans-serif}
.scroll{overflow-x:auto}
.sites,.rooms,.drills{display:grid;align-items:start;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:1rem}
.site,.room,figure{border:1px solid var(--line);border-radius:8px;padding:.8rem;margin:0;overflow-wrap:anywhere}
.site.cr,figure.cr{border-left:4px solid var(--cr)}.site.ok,figure.ok{border-left:4px solid var(--ok)}
svg.g{width:100%;height:auto;max-width:44rem}svg.g text{font-size:15px}.area{fill:var(--accb)}.line{fill:none;stroke:var(--acc);stroke-width:2}
.ahead{fill:none;stroke:var(--acc);stroke-width:2;stroke-dasharray:5 4}.limit{fill:none;stroke:var(--cr);stroke-width:1.5}
figure img{max-width:100%;border-radius:4px;margin-bottom:.4rem;display:block}
.bars th{width:30%;font-weight:500}.num{white-space:nowrap}.bar{width:40%}
.bar i{display:block;height:.7rem;margin-top:.35rem;border-radius:3px;background:var(--acc);min-width:2px}
.wide{font-size:.9rem}.wide td{overflow-wrap:break-word}.wide tbody th{font-weight:600}
@media(max-width:1250px){
.wide thead{display:none}.wide,.wide tbody{display:block}
.wide tbody{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:.8rem}
.wide tr{display:block;border:1px solid var(--line)!important;border-radius:8px;padding:.5rem .8rem}
.wide th,.wide td{display:flex;justify-content:space-between;gap:1rem;padding:.1rem 0}
.wide td{text-align:right}.wide td:before{content:attr(data-h);color:var(--dim);text-align:left;flex:none}}
@media(max-width:640px){body{padding:.6rem}section,footer{padding:.7rem}
.cards:not(.wide) thead{display:none}.cards:not(.wide) tr,.cards:not(.wide) td{display:block}.cards:not(.wide) td{padding:.05rem 0}
.cards:not(.wide) tr{padding:.4rem 0}.cards td[data-h]:before{content:attr(data-h) ' ';color:var(--dim)}
.bars th,.bars td{padding:.2rem .4rem .2rem 0}.bar{display:none}}
@media print{:root{--bg:#fff;--card:#fff;--ink:#000;--dim:#444;--line:#bbb}
body{max-width:none;padding:0;font-size:11px}section{break-inside:auto;border:0;padding:.4rem 0}
tr,figure,.site,.room{break-inside:avoid}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
";
