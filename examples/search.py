"""Searching the tables of a model, cell by cell: as a notebook (VS Code, Spyder, Jupytext), or from top to bottom.

Run: python examples/search.py [FOLDER]. It needs a prepared MovieLens-100K, which `make demo` leaves in
demo/data/movielens-100k, or the folder that you give. Everything goes to searches/.
"""

# %% What is searched: how wide each feature's rows are, at two fifths of the plain tables' bytes.
import sys
from pathlib import Path

import optuna
import yaml

from embank.pipelines import load_config, search_config

DATA = sys.argv[1] if len(sys.argv) > 1 else "demo/data/movielens-100k"
OUT = Path("searches/example")
config = yaml.safe_load(Path(__file__).with_name("movielens.yaml").read_text())
config["data"]["path"] = DATA

# %% One supernet is trained with random widths. After that a candidate is a mask, and its score takes milliseconds.
settings = {"space": "widths", "sampler": "ea", "budget": 0.4, "num_trials": 120, "num_retrained": 1}
study = search_config(config, out=OUT, resume=(OUT / "search.yaml").is_file(), **settings)
print(f"{len(study.trials)} trials, best score on the supernet {study.best_value:.4f}")

# %% The study is Optuna's: trials, attributes, plots and dashboards work as ever.
best = study.best_trial
print(f"{best.user_attrs['nbytes']:,} bytes:")
for name, value in best.user_attrs["candidate"].items():
    print(f"  {name} = {value}")
complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
print(f"scores from {min(t.value for t in complete):.4f} to {max(t.value for t in complete):.4f}")

# %% The best candidates were trained anew; results.md has the table, best.yaml the configuration for `embank train`.
print((OUT / "results.md").read_text())
chosen = load_config(OUT / "best.yaml").tables
print({name: (table.method, table.dim) for name, table in chosen.overrides.items()})

# %% The same study goes on with more trials where it stopped.
settings["num_trials"] += 30
study = search_config(config, out=OUT, resume=True, **settings)
print(f"{len(study.trials)} trials, best score {study.best_value:.4f}")
