"""Where the first base model's files lie, for the cost model, which looks at what is there already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.layout import JobId


@dataclass(frozen=True)
class Places:
    """A run's files by what they are (:class:`localized_unlearning.costs.sizes.Places`)."""

    graph: Graph

    def _path(self, job: JobId, output: str) -> Path:
        return Path(self.graph.layout.outputs(job)[output])

    def base_model(self) -> Path:
        """The base model's folder."""
        return self._path(JobId.of(self.graph.maker, base_seed=self.graph.bases[0]), "model")

    def card(self) -> Path:
        """The base model's card."""
        return self._path(JobId.of("model_card", base_seed=self.graph.bases[0]), "json")

    def source(self, dotted: str) -> Path:
        """What ``fetch`` brings of a source."""
        return self._path(JobId.of("fetch", source=dotted), "file")

    def prompts(self) -> Path:
        """The prompts file."""
        return Path(self.graph.path(self.graph.prompts_file))

    def selection(self, masks: bool, task: str, localization: str) -> Path:
        """The selection that a job trains, or masks."""
        w = {"base_seed": str(self.graph.bases[0]), "task": task, "localization": localization}
        return self._path((self.graph.masked(w) if masks else self.graph.trained(w)).job, "selection")
