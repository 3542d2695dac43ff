"""Pages of the documentation site that are made from other files of the repository, and links that lead out of docs/.

MkDocs calls the functions below (mkdocs.yml, "hooks").
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/quantize.ipynb": "examples/quantize.md",
    "examples/scaling.ipynb": "examples/scaling.md",
    "examples/tflite.ipynb": "examples/tflite.md",
    "examples/to_c.ipynb": "examples/to_c.md",
    "examples/own_model/README.md": "examples/own_model.md",
    "examples/service/README.md": "examples/service.md",
}
"""Files of the repository to the pages of the site that they become."""

_LINK = re.compile(r"(\]\(|(?:srcset|src|href)=\")(?!https?:|mailto:|#)([^)\"#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and every file outside docs/ that a page links to, under repository/."""
    for source, page in PAGES.items():
        path = ROOT / source
        text = _notebook(path) if path.suffix == ".ipynb" else path.read_text()
        files.append(File.generated(config, page, content=_relinked(text, source, page)))
    for file in list(files.documentation_pages()):
        source = f"docs/{file.src_uri}"
        if file.generated_by is None:
            for target in _targets(file.content_string, source):
                _add(files, config, target)
    for source in PAGES:
        for target in _targets((ROOT / source).read_text(), source) if source.endswith(".md") else ():
            _add(files, config, target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links from docs/ to other folders lead to what ``on_files`` added."""
    if page.file.generated_by is not None:
        return markdown
    return _relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def _resolved(source: str, target: str) -> str:
    """Return the path in the repository that a link in the file ``source`` means."""
    parts: list[str] = []
    for part in (PurePosixPath(source).parent / target).parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def _targets(text: str, source: str) -> list[str]:
    found = [_resolved(source, target) for _, target in _LINK.findall(text)]
    return [path for path in found if not path.startswith("docs/") and path not in PAGES and (ROOT / path).is_file()]


def _add(files: Files, config: MkDocsConfig, path: str) -> None:
    name = f"repository/{path}" if not path.endswith(".md") else f"repository/{path}.txt"
    if files.get_file_from_path(name) is None:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))


def _relinked(text: str, source: str, page: str) -> str:
    up = "../" * page.count("/")

    def replaced(match: re.Match[str]) -> str:
        path = _resolved(source, match[2])
        if path in PAGES:
            target = PAGES[path]
        elif path.startswith("docs/"):
            target = path.removeprefix("docs/")
            if not match[1].startswith("]") and page != "index.md":
                target = f"../{target}"  # HTML attributes are not rewritten, and each page is a folder
        else:
            target = f"repository/{path}"
        return f"{match[1]}{up}{target}"

    return _LINK.sub(replaced, text)


def _notebook(path: Path) -> str:
    """Return a notebook with its outputs as Markdown."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
        elif text:
            parts.append(f"```python\n{text}\n```")
            parts += [shown for output in cell["outputs"] if (shown := _output(output))]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, object]) -> str:
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text'])}\n```"  # type: ignore[arg-type]
    kinds: dict[str, list[str]] = output.get("data", {})  # type: ignore[assignment]
    for kind in ("image/svg+xml", "text/html"):
        if kind in kinds:
            lines = "".join(kinds[kind]).splitlines()
            return f"<div>{''.join(line.strip() + ' ' for line in lines)}</div>"  # one line: Markdown leaves it alone
    if "image/png" in kinds:
        return f'<img src="data:image/png;base64,{"".join("".join(kinds["image/png"]).split())}" alt="A plot">'
    return f"```text\n{''.join(kinds['text/plain'])}\n```" if "text/plain" in kinds else ""
