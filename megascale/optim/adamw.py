"""AdamW as the base of every optimizer here."""

from __future__ import annotations

import torch


class AdamW(torch.optim.AdamW):
    """torch's AdamW with state that exists before the first step, so a checkpoint can be copied into it.

    megatron-core's `DistributedOptimizer` accepts only Adam and AdamW: others subclass this.
    """

    def allocate_state(self) -> None:
        """Create `step` (fp32 scalar), `exp_avg` and `exp_avg_sq` for every parameter that has none."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }

    @property
    def updates(self) -> int:
        """How many times parameters were updated; every parameter has the same number."""
        return max((int(state["step"]) for state in self.state.values()), default=0)

    @updates.setter
    def updates(self, count: int) -> None:
        for state in self.state.values():
            state["step"].fill_(float(count))
