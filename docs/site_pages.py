"""Makes a site of pages that are written to be read on a code host, too (a hook of mkdocs).

The README is the home page, and a few more files from outside this folder are pages. A link to a
page leads to the page; one to any other file of the project leads to ``repo_url``, or without one
shows the file's path.
"""

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Files outside of docs/, and the pages that they become.
PAGES = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
_SOURCES = {page: file for file, page in PAGES.items() if page != "security.md"}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written outside of docs/."""
    for page, file in _SOURCES.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point a page's links to where they lead on the site."""
    source = PurePosixPath(_SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def led(match: re.Match[str]) -> str:
        picture, text, link = match.groups()
        path, mark, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:") or not path:
            return match[0]
        file = _plain(source.parent / path)
        inside = PAGES.get(file) or file.removeprefix("docs/")
        if file in PAGES or (file.startswith("docs/") and (ROOT / file).is_file()):
            return f"{picture}[{text}]({inside}{mark}{anchor})"
        if not (ROOT / file).exists():
            return match[0]  # mkdocs says that it is broken
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{file})"
        return text if file in text or "`" in text else f"{text} (`{file}`)"

    markdown = markdown.replace('src="docs/', 'src="')
    parts = _CODE.split(markdown)
    return "".join(part if at % 2 else _LINK.sub(led, part) for at, part in enumerate(parts))


def _plain(path: PurePosixPath) -> str:
    """A path without ``..``."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
