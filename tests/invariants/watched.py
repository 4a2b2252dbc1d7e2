"""05, 06 or 07 on the letter task as a program that may be several processes, each of which writes down what it does.

Variables: WATCHED_SCRIPT, WATCHED_FOLDER (gets <rank>.pt: pid, tokens of each step, gradients and weights of each
update, how many numbers of policy, reference and moments this process holds); optional WATCHED_REPLAY (tokens of each
step to take instead of sampling) and WATCHED_NAN=rank,step.

    WATCHED_SCRIPT=06_train_grpo WATCHED_FOLDER=/tmp/w python -m tests.invariants.watched --num_processes 2 ...
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.invariants.tiny import LetterTask
from utils import ranks
from utils.stage import main
from utils.tasks.base import Reward


class LettersTask(LetterTask):
    """The letter task, but every text is paid something between 1 and 2, so that no group is unanimous."""

    def score(self, rollouts: Any) -> list[Any]:
        totals = [1 + sum(map(ord, rollout.text)) % 7 / 7 for rollout in rollouts]
        return [Reward(total, {"exact": total}) for total in totals]


def watch(put: Callable[[str, Any], None], folder: Path, replay: str = "", nan: str = "") -> None:
    """Patch the engine, through `put(dotted name, new)`, so that it writes down, replays or fails."""
    import torch

    from utils.models.sharding import is_share, together
    from utils.models.tokens import decode
    from utils.rl.completions import Completion
    from utils.rl.learner import Learner
    from utils.rl.rollouts import RolloutBatch
    from utils.rl.session import Session

    seen: dict[str, Any] = {"pid": os.getpid(), "tokens": {}, "gradients": [], "weights": []}
    recorded = torch.load(replay)["tokens"] if replay else {}
    init, update, sampled, backward = Learner.__init__, Learner.update, Session._sampled, Learner.backward

    def keep_gradients(optimizer: Any, *_: Any) -> None:
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        seen["gradients"].append(torch.cat([together(one.grad).flatten().clone() for one in parameters]))

    def held(learner: Learner) -> int:
        moments = [one for state in learner.optimizer.state.values() for one in state.values()]
        with learner.reference.model() as reference:
            tensors = [*learner.policy.parameters(), *reference.parameters(), *moments]
        return sum((one.to_local() if is_share(one) else one).numel() for one in tensors)

    def new_init(self: Learner, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        self.optimizer.register_step_pre_hook(keep_gradients)

    def new_update(self: Learner, *arguments: Any) -> dict[str, float]:
        figures = update(self, *arguments)
        seen["weights"].append(torch.cat([together(one.detach()).flatten() for one in self.parameters.values()]))
        seen["held"] = held(self)
        folder.mkdir(exist_ok=True)
        torch.save(seen, folder / f"{ranks.rank()}.new")
        (folder / f"{ranks.rank()}.new").replace(folder / f"{ranks.rank()}.pt")  # whole whenever it is read
        return figures

    def new_sampled(self: Session, examples: Any, group_size: int, numbers: Any, step: int) -> RolloutBatch:
        batch = sampled(self, examples, group_size, numbers, step)
        if step in recorded:
            groups = [[Completion(*one) for one in group] for group in recorded[step]]
            texts = [[decode(self.learner.tokenizer, one.tokens) for one in group] for group in groups]
            batch = replace(batch, groups=groups, texts=texts)
        seen["tokens"][step] = [[(one.tokens, one.truncated) for one in group] for group in batch.groups]
        return batch

    def new_backward(self: Learner, losses: torch.Tensor, batch: Any) -> None:
        broken = nan == f"{ranks.rank()},{batch.step}"
        backward(self, losses * float("nan") if broken else losses, batch)

    put("utils.rl.session.make_task", lambda settings, spec: LettersTask())
    put("utils.rl.learner.Learner.__init__", new_init)
    put("utils.rl.learner.Learner.update", new_update)
    put("utils.rl.learner.Learner.backward", new_backward)
    put("utils.rl.session.Session._sampled", new_sampled)


def set_attribute(name: str, value: Any) -> None:
    """`monkeypatch.setattr` of a program: a dotted name of a module's or class's attribute."""
    owner, _, attribute = name.rpartition(".")
    module, _, cls = owner.rpartition(".")
    target = getattr(importlib.import_module(module), cls) if cls[0].isupper() else importlib.import_module(owner)
    setattr(target, attribute, value)


if __name__ == "__main__":
    if ranks.started()[1] > 1:  # what starts the processes needs nothing of this
        given = {name: os.environ.get(f"WATCHED_{name.upper()}", "") for name in ("replay", "nan")}
        watch(set_attribute, Path(os.environ["WATCHED_FOLDER"]), **given)
    script = importlib.import_module(os.environ["WATCHED_SCRIPT"])
    code = main(script.Config, script.run, script.__doc__, str(script.__file__), plan=script.plan)
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if not code and (left := [name for name in threads if "gloo" in name]):
        raise SystemExit(f"threads of the group outlive it: {left}")
    raise SystemExit(code)
