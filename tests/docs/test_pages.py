"""Every code block of the README and the pages is run, or says in a comment why not; both are counted."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metricli import errors
from tests.docs.blocks import Block, blocks_of, commands_of, run_page

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {"docs/metrics.md"}
"""Pages whose blocks another test runs: tests/core/test_metrics.py."""
BY_THEMSELVES = ("CONTRIBUTING.md", "docs/plugins.md")
"""Pages that have a test of their own: below, and test_tutorial.py."""

COUNTS = {
    "CHANGELOG.md": (0, 0),
    "CONTRIBUTING.md": (4, 3),
    "README.md": (13, 1),
    "SECURITY.md": (0, 0),
    "docs/datasets.md": (2, 6),
    "docs/coming-from.md": (1, 1),
    "docs/design.md": (0, 1),
    "docs/faq.md": (3, 0),
    "docs/glossary.md": (0, 0),
    "docs/health.md": (5, 0),
    "docs/images.md": (0, 1),
    "docs/index.md": (2, 1),
    "docs/loggers.md": (2, 0),
    "docs/losses.md": (5, 0),
    "docs/plugins.md": (9, 1),
    "docs/postprocessors.md": (7, 0),
    "docs/prompt.md": (3, 2),
    "docs/python.md": (3, 0),
    "docs/report.md": (2, 0),
    "docs/runs.md": (3, 0),
    "docs/scale.md": (2, 7),
    "docs/spec.md": (0, 0),
    "docs/table.md": (1, 1),
    "docs/uncertainty.md": (6, 1),
}
"""page -> (blocks run, blocks not run)."""


def pages() -> dict[str, Path]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(found)}


def test_every_page_is_known_and_its_blocks_are_counted() -> None:
    assert set(pages()) - ELSEWHERE == set(COUNTS)
    counts = {}
    for name in COUNTS:
        by_run = Counter(block.runs for block in blocks_of(pages()[name]))
        counts[name] = (by_run[True], by_run[False])
    assert counts == COUNTS


@pytest.mark.parametrize("name", [n for n, (run, _) in COUNTS.items() if run and n not in BY_THEMSELVES])
def test_the_blocks_of_a_page_run(name: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    for shared in ("data", "examples"):
        (tmp_path / shared).symlink_to(ROOT / shared)
    (tmp_path / "runs").mkdir()
    run_page(blocks_of(pages()[name]), cli, tmp_path)


def test_the_loss_of_the_five_steps_is_a_loss(cli: Callable[..., Any], tmp_path: Path) -> None:
    made = run_page(blocks_of(ROOT / "CONTRIBUTING.md"), cli, tmp_path)
    loss = made["Ddml"](threshold=2.0).build(dim=2, num_labels=2, label_to_category=None)
    embeddings = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.6, 0.0]], requires_grad=True)
    value = loss(embeddings, torch.tensor([0, 0, 1]))  # pairs: 5 apart of one label; 0.6 apart; far apart
    softplus = [math.log1p(math.exp(x)) for x in (1 - (2 - 25), 1 + (2 - 0.36), 1 + (2 - (2.4**2 + 4**2)))]
    assert value.item() == pytest.approx(sum(softplus) / 3)
    assert loss.stats["positive_distance"].item() == pytest.approx(5)
    value.backward()
    assert embeddings.grad is not None
    assert bool(torch.isfinite(embeddings.grad).all())
    with pytest.raises(ValueError, match="threshold must be above 1, got 1"):
        made["DdmlLoss"](threshold=1)


def test_the_commands_of_the_demo_stand_in_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\ndemo: install\n")[2].partition("\n\n")[0]
    recipe = recipe.replace("$(BIN)/", "").replace("$(DEMO)", "runs/demo")
    demo = [words for words in commands_of(recipe.replace("\t", "")) if words[0] == "metricli"]
    assert len(demo) == 5
    readme = [commands_of(block.text) for block in blocks_of(ROOT / "README.md") if block.language == "bash"]
    assert demo in readme


def test_links_to_files_lead_somewhere() -> None:
    links = 0
    for name, page in pages().items():
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{name} links to {target}"
                links += 1
    assert links > 10


def test_the_readme_lists_every_exit_code() -> None:
    table = (ROOT / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    listed = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for code in row.split(",")}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")]
    assert len(kinds) == 11
    assert listed == {0, 130, 143} | {kind.exit_code for kind in kinds}


def test_no_page_names_a_machine_or_a_package_registry() -> None:
    for name, page in pages().items():
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(work|home|root|tmp|mnt|Users)/|pypi|pythonhosted", text), name


def test_a_page_with_a_wrong_block_is_noticed(tmp_path: Path, cli: Callable[..., Any]) -> None:
    page = tmp_path / "page.md"

    def blocks(text: str) -> list[Block]:
        page.write_text(text)
        return blocks_of(page)

    with pytest.raises(AssertionError, match=r"page.md:1 \(bash\): metricli pluginz exited with 2"):
        run_page(blocks("```bash\nmetricli pluginz\n```\n"), cli, tmp_path)
    with pytest.raises(AssertionError, match=r"page.md:1 \(bash\): only metricli is run, not 'rm'"):
        run_page(blocks("```bash\nrm -r runs  # all\n```\n"), cli, tmp_path)
    with pytest.raises(ZeroDivisionError):
        run_page(blocks("```python\n1 / 0\n```\n"), cli, tmp_path)
    with pytest.raises(AssertionError, match=r"page.md:5 \(text\): not what was printed"):
        run_page(blocks("```bash\nmetricli --version\n```\n\n```text\n9.9\n```\n"), cli, tmp_path)
    with pytest.raises(AssertionError, match="unknown comment 'not tun: x'"):
        blocks("<!-- not tun: x -->\n```bash\nfalse\n```\n")
    with pytest.raises(AssertionError, match="there is no 'epochs=9' to shorten"):
        run_page(blocks("<!-- shortened: epochs=9 -> epochs=1 -->\n```python\n1\n```\n"), cli, tmp_path)
    with pytest.raises(AssertionError, match="cannot be run"):
        run_page(blocks("```rust\nfn\n```\n"), cli, tmp_path)
