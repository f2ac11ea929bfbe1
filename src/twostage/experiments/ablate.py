"""`twostage ablate`: the papers' tables as runs, with seeds, resumable."""

import json
import logging
import statistics
from dataclasses import replace
from typing import Any

from twostage.atomic import write_text
from twostage.experiments.begin import BACKBONE, Setting, begin, begin_backbone, setting_of
from twostage.experiments.bench import Bench
from twostage.experiments.options import AblateOptions
from twostage.experiments.studies import ALL, Values
from twostage.folders import claimed

log = logging.getLogger("twostage.lineage")
SEEDS = 3


def ablate(options: AblateOptions) -> dict[str, Any]:
    """Run the studies; returns {"out", "settings", "studies": {name: {"title", "source", "unit", "cases": [...]}}}.

    A case has the paper's value, one value per seed, and their mean, smallest and largest. Raises MissingError
    without the extra `lineage`, and as `twostage.training.train`.
    """
    options, root, splits = begin(options, "ablate")
    options = replace(options, seeds=options.seeds or SEEDS)
    with claimed(root / "state"):
        setting = setting_of(options, root, splits)
        if not (root / BACKBONE).exists():
            begin_backbone(setting)
        values = {name: _of_all_seeds(setting, name, options) for name in options.only}
    result = {
        "out": str(root),
        "data": str(setting.splits.train.root),
        "images": {"train": len(setting.splits.train), "val": len(setting.val)},
        "settings": {name: getattr(options, name) for name in ("size", "windows", "minutes", "seeds", "seed")},
        "studies": {name: _summary(name, of_seeds) for name, of_seeds in values.items()},
    }
    write_text(root / "ablate.json", json.dumps(result, indent=2) + "\n")
    return result


def _of_all_seeds(setting: Setting, name: str, options: AblateOptions) -> list[Values]:
    by_seed = []
    for seed in range(options.seed, options.seed + (options.seeds or SEEDS)):
        path = setting.root / "results" / f"{name}-{seed}.json"
        if not path.exists():
            log.info("%s, seed %d", ALL[name].title, seed)
            values = ALL[name].run(Bench(setting, seed))
            write_text(path, json.dumps(values, indent=2) + "\n")
        by_seed.append(json.loads(path.read_text(encoding="utf-8")))
    return by_seed


def _summary(name: str, of_seeds: list[Values]) -> dict[str, Any]:
    study = ALL[name]
    cases = []
    for case, papers in study.papers.items():
        values = [values[case] for values in of_seeds]
        cases.append(
            {
                "case": case,
                "papers": papers,
                "values": values,
                "mean": statistics.mean(values),
                "least": min(values),
                "most": max(values),
            }
        )
    return {"title": study.title, "source": study.source, "unit": study.unit, "cases": cases}
