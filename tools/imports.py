"Draw in CONTRIBUTING.md which module imports which: grimp reads the package, Mermaid draws."
import re
from pathlib import Path

import grimp
import networkx as nx
from fastcore.script import call_parse

root = Path(__file__).resolve().parent.parent
page = root/'CONTRIBUTING.md'
block = re.compile(r'```mermaid\n.*?```', re.DOTALL)

def drawing():
    "The graph as a block of Mermaid. An arrow is left out where a longer way says the same."
    found = grimp.build_graph('fb_pass', cache_dir=None)
    names = sorted(o[8:] for o in found.modules if re.fullmatch(r'fb_pass\.[a-z].*', o))
    graph = nx.DiGraph()
    graph.add_nodes_from(names)
    for o in names: graph.add_edges_from((i[8:], o) for i in found.find_modules_directly_imported_by(f'fb_pass.{o}'))
    if not nx.is_directed_acyclic_graph(graph): raise ValueError(f'a circle of imports: {nx.find_cycle(graph)}')
    lines = [f'  {a} --> {b}' for a,b in sorted(nx.transitive_reduction(graph).edges)]
    alone = [f'  {o}' for o in names if not graph.degree(o)]
    return '\n'.join(['```mermaid', 'graph LR', *lines, *alone, '```'])

@call_parse
def main():
    "Renew the drawing in CONTRIBUTING.md."
    page.write_text(block.sub(lambda m: drawing(), page.read_text(encoding='utf-8')), encoding='utf-8')
    print('CONTRIBUTING.md has the imports as they are')
