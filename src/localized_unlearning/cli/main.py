"""Where the command begins: a job of the workflow is handed to a warm process, everything else is run here.

Light on purpose: a run has hundreds of jobs, and the client of a warm start reads neither the config nor the stages.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from localized_unlearning.cli import warm


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 for a fault told in one sentence, 2 for wrong usage.

    With :data:`localized_unlearning.cli.warm.VARIABLE` in the environment, as the workflow sets it, a stage starts warm.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    asked = given and warm.asked() == "1" and not given[0].startswith("-")
    status = warm.run(given, start=warm.starts(given)) if asked and warm.possible() else None
    if status is None:
        from localized_unlearning.cli import commands  # the whole package: a third of a second

        status = commands.main(given)
    return status


if __name__ == "__main__":
    sys.exit(main())
