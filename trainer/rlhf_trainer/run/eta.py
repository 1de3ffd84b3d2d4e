"""How long a stage still takes, by what its steps and evaluations took. Called by `report`."""

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import StageConfig


class StepClock:
    """Smoothed seconds a step, from the times at which steps end."""

    SMOOTHING = 0.1

    def __init__(self, now: float) -> None:
        self._last = now
        self._mean: float | None = None
        self._ticks = 0

    def tick(self, now: float, steps: int) -> None:
        """`steps` more steps are done."""
        if steps < 1:
            return
        seconds = (now - self._last) / steps
        self._last = now
        self._ticks += 1
        if self._mean is None:
            self._mean = seconds
            return
        # The first step carries compilation and cold caches: the second one replaces it, and from
        # then on each has an equal share until that falls below SMOOTHING.
        weight = max(self.SMOOTHING, 1 / (self._ticks - 1))
        self._mean += weight * (seconds - self._mean)

    def leave_out(self, seconds: float) -> None:
        """So much of the time since the last step was no part of the next."""
        self._last += seconds

    def eta(self, remaining: int) -> float | None:
        """Seconds until `remaining` more steps are done; None before the first."""
        return None if self._mean is None else self._mean * remaining


class EvaluationClock:
    """Mean seconds of a pass over the held-out rows, and how many passes are left.

    An evaluation is one pass; PPO's last are two, by the reference and by the actor.
    """

    def __init__(self, config: StageConfig) -> None:
        self._every = config.spec.eval_every_steps
        last = 2 if config.stage is StageName.PPO else 1
        self._last = 0 if config.spec.eval_dataset is None else last
        self._seconds = 0.0
        self._passes = 0
        self._step, self._passes_of_step = 0, 0

    def tick(self, step: int, seconds: float) -> None:
        """One more pass, by the state after `step` steps, took so long."""
        if step != self._step:
            self._step, self._passes_of_step = step, 0
        self._passes_of_step += 1
        self._passes += 1
        self._seconds += seconds

    def eta(self, step: int, total_steps: int) -> float:
        """Seconds of the passes that are left after `step` steps; 0 before the first is done."""
        return self._left(step, total_steps) * self._seconds / max(1, self._passes)

    def _left(self, step: int, total_steps: int) -> int:
        if not self._last:
            return 0
        done = self._passes_of_step if step == self._step else 0
        if step >= total_steps:
            return max(0, self._last - done)
        if self._every is None:
            return self._last
        now = 1 if step > 0 and step % self._every == 0 else 0
        later = (total_steps - 1) // self._every - step // self._every
        return max(0, now - done) + later + self._last
