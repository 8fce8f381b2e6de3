"Write every notebook as a page into _docs, and a page of contents by folder: `make docs`."
import html
import re
import shutil
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

ROOT = Path(__file__).parent.parent
OUT = ROOT/'_docs'
PAGE = '''<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>ich_fastai: contents</title>
<style>body{{font:16px/1.5 sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}}h2{{margin:1.6rem 0 .2rem}}
ul{{list-style:none;padding:0;margin:0}}li{{margin:.15rem 0}}p{{margin:.2rem 0}}</style>
<h1>ich_fastai</h1><p><a href="index.html">What it is, and how to begin</a></p>
{}</html>'''


def head(
    notebook: nbformat.NotebookNode,
) -> tuple[str, str]: # title, and the sentence below it; empty where there is none
    "Read the title of a notebook."
    texts = [o.source for o in notebook.cells if o.cell_type != 'code']
    first = next((o for o in texts if re.search('^# ', o, re.M)), '')
    title, said = re.search('^# (.+)', first, re.M), re.search('^> (.+)', first, re.M)
    return title[1] if title else '', said[1] if said else ''


def gist(
    folder: Path, # of notebooks
) -> str: # one sentence; empty where the folder has no package
    "Say what goes into a package and what comes out: the first line of its face."
    face = ROOT/'ich_fastai'/re.sub(r'^\d+_', '', folder.name)/'__init__.py'
    return face.read_text(encoding='utf-8').split('\n')[0].strip('"') if face.is_file() else ''


def write_docs() -> int: # pages
    "Write all pages."
    shutil.rmtree(OUT, ignore_errors=True)
    exporter, folders = HTMLExporter(), {}
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in path.parts: continue
        place = path.relative_to(ROOT/'nbs').with_suffix('.html')
        notebook = nbformat.read(path, 4)
        up = '../' * (len(place.parts) - 1)
        about = {'metadata': {'name': head(notebook)[0] or path.stem}}
        body, _ = exporter.from_notebook_node(notebook, resources=about)
        body = re.sub(r'(href="[^":]+)\.ipynb([#"])', r'\1.html\2', body)
        back = f'<p style="margin:1em"><a href="{up}contents.html">ich_fastai: contents</a></p>'
        body = re.sub('(<body[^>]*>)', lambda found: found[0] + back, body, count=1)
        (OUT/place).parent.mkdir(parents=True, exist_ok=True)
        (OUT/place).write_text(body, encoding='utf-8')
        if path.stem != 'index': folders.setdefault(place.parent, []).append((place, *head(notebook)))
    sections = []
    for folder, pages in sorted(folders.items(), key=lambda pair: (pair[0].name[:1].isalpha(), pair[0])):
        lines = [f'<li><a href="{place.as_posix()}">{html.escape(title)}</a> {html.escape(said)}</li>'
                 for place, title, said in pages]
        name = folder.name or 'The beginning, the end, and single modules'
        sections.append(f'<h2>{html.escape(name)}</h2><p>{html.escape(gist(folder))}</p><ul>{"".join(lines)}</ul>')
    (OUT/'contents.html').write_text(PAGE.format('\n'.join(sections)), encoding='utf-8')
    shutil.copytree(ROOT/'nbs'/'images', OUT/'images')
    return sum(map(len, folders.values()))


if __name__ == '__main__': print(f'{write_docs()} pages are in {OUT.name}; begin with {OUT.name}/contents.html')
