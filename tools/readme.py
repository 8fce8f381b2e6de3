"Write README.md from nbs/index.ipynb: `make readme`."
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import RegexRemovePreprocessor

ROOT = Path(__file__).parent.parent


def readme(
    notebook: Path, # nbs/index.ipynb
) -> str: # Markdown; links to images are relative to the root of the repository
    "Turn the index notebook into a README; hidden cells and all code are left out."
    hidden = RegexRemovePreprocessor(patterns=[r'#\|\s*hide'])
    exporter = MarkdownExporter(exclude_input=True)
    exporter.register_preprocessor(hidden, enabled=True)
    text, _ = exporter.from_notebook_node(nbformat.read(notebook, 4))
    return re.sub('\n{3,}', '\n\n', text).replace('](images/', '](nbs/images/').strip() + '\n'


if __name__ == '__main__': (ROOT/'README.md').write_text(readme(ROOT/'nbs'/'index.ipynb'), encoding='utf-8')
