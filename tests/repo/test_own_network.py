"""The guide "Your own network in 20 lines": that it is, and that its network has what makes others difficult."""

from typing import Any

from torch import nn
from zennit.layer import Sum

from repo.readme import README, blocks
from selrel_zennit.canonizers.batch_norm import FunctionCanonizer, neighbours

PAGE = README.with_name("docs") / "howto" / "your-network.md"


def test_the_first_block_is_at_most_20_lines_long_and_has_a_sum_and_batch_norms() -> None:
    first = next(block for block in blocks(PAGE.read_text(encoding="utf-8")) if block.language == "python")
    assert first.line < 10
    lines = [line for line in first.text.splitlines() if line.strip()]
    assert len(lines) <= 20, f"{len(lines)} lines"
    found: dict[str, Any] = {}
    exec(first.text, found)
    network = found["network"]
    assert found["explanation"].relevance.shape == (1, 8, 32, 32)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    assert [norm for _, norm in neighbours(network)] == norms
    assert len(norms) == 2
    instances = FunctionCanonizer().apply(network)
    assert len([module for module in network.modules() if isinstance(module, Sum)]) == 1
    for instance in instances:
        instance.remove()
