"""The site that mkdocs builds of the pages."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

pytest.importorskip("material", reason="pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r"<(?:script|img|iframe)[^>]+src=\"?https?://|<link[^>]+href=\"?https?://")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert not [page.name for page in pages if fetched.search(page.read_text())]
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text()


def test_links_to_files_of_the_project_lead_nowhere_else_than_they_can(site: Path) -> None:
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#:?]+)"', page.read_text()):
            if not link.startswith("/"):  # of the page for links that are broken
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_is_the_home_page_and_shows_its_figure(site: Path) -> None:
    home = (site / "index.html").read_text()
    assert 'src="demo_accuracy_over_epochs.png"' in home
    assert 'href="tutorial.html"' in home
    assert 'href="benchmarks.html"' in home
