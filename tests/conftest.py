"""Settings for the whole suite."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs on several processes; threads of torch would only fight
