"""The documents: links, anchors and the files that they name."""

import re

import pytest
from scripts import ROOT

pytestmark = pytest.mark.quick

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "configs/texts/README.md"]
NAMED = r"`((?:benchmarks|configs|docs|examples|experiments|sinkjax|tests)/[\w./-]+\.\w+)`"


def prose(page):
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def anchors(page):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)", prose(page), re.M)
    return [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_are_there(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchors(target).count(anchor) != 1):
            wrong.append(link)
    named = [name for name in re.findall(NAMED, prose(page)) if "NAME" not in name]
    wrong += [name for name in named if not (ROOT / name).exists()]
    assert wrong == []


def test_the_pages_are_those_that_link_to_each_other():
    assert len(PAGES) > 12
    linked = sum(len(re.findall(r"\]\([^)]*#", prose(page))) for page in PAGES)
    assert linked > 50
