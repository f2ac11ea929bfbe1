"""`twostage ablate`: the papers' tables as runs, with seeds, resumable."""

import json
import logging
import statistics
from typing import Any

from twostage.atomic import write_text
from twostage.experiments.begin import BACKBONE, Setting, begin_backbone, comparison, load_or_make
from twostage.experiments.bench import Bench
from twostage.experiments.options import AblateOptions
from twostage.experiments.studies import ALL, Values

log = logging.getLogger("twostage.experiments")
SEEDS = 3


def ablate(options: AblateOptions) -> dict[str, Any]:
    """Run the studies; returns {"out", "settings", "studies": {name: {"title", "source", "unit", "cases": [...]}}}.

    A case has the paper's value, one value per seed, and their mean, smallest and largest. Raises MissingError
    without the extra `lineage`, and as `twostage.training.train`.
    """
    with comparison(options, "ablate") as setting:
        options, root = setting.options, setting.root
        seeds = range(options.seed, options.seed + (options.seeds or SEEDS))
        if not (root / BACKBONE).exists():
            begin_backbone(setting)
        studies = {}
        for name in options.parts:
            if name in options.only:
                studies[name] = _summary(name, [_values(setting, name, seed) for seed in seeds])
            elif earlier := sorted((root / "results").glob(f"{name}-*.json")):
                studies[name] = _summary(name, [json.loads(file.read_text(encoding="utf-8")) for file in earlier])
    result = {
        "out": str(root),
        "data": str(setting.train.root),
        "images": {"train": len(setting.train), "val": len(setting.val)},
        "settings": {
            **{name: getattr(options, name) for name in ("size", "windows", "minutes")},
            "seeds": len(seeds),
            "seed": options.seed,
        },
        "studies": studies,
    }
    write_text(root / "ablate.json", json.dumps(result, indent=2) + "\n")
    return result


def _values(setting: Setting, name: str, seed: int) -> Values:
    def run() -> Values:
        log.info("%s, seed %d", ALL[name].title, seed)
        return ALL[name].run(Bench(setting, seed))

    return load_or_make(setting.root / "results" / f"{name}-{seed}.json", run)


def _summary(name: str, of_seeds: list[Values]) -> dict[str, Any]:
    study = ALL[name]
    cases = []
    for case, papers in study.papers.items():
        values = [values[case] for values in of_seeds]
        numbers = {"mean": statistics.mean(values), "least": min(values), "most": max(values)}
        cases.append({"case": case, "papers": papers, "values": values, **numbers})
    return {"title": study.title, "source": study.source, "unit": study.unit, "cases": cases}
